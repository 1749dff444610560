"""One training step: state -> state, jitted once, the old state donated."""

import collections
import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float

from qwen3_jax.config import ModelConfig
from qwen3_jax.lora import adapter_tree, init_adapters
from qwen3_jax.model import Qwen3
from qwen3_jax.params import ParamSpec, spec_tree
from qwen3_jax.placement import Placement, place
from sharding import Rules, axes_of, named_sharding, target_platform
from train.config import TrainConfig
from train.data import Batch
from train.lora import joined, lora_of
from train.objective import batch_loss as batch_loss
from train.objective import gradients
from train.optimizer import make_optimizer, schedule

TRACES: collections.Counter[str] = collections.Counter()  # how often each jitted function was traced


@flax.struct.dataclass
class TrainState:
    """What a checkpoint holds.

    Attributes:
      step: steps done.
      params: what is trained: the model's parameters, or its adapters.
      opt_state: the optimizer's.
      ema: exponential moving average of the parameters, when `ema_decay` is set.
      frozen: with adapters, the base's parameters, in the dtype of the activations; not in checkpoints. Else None.
    """

    step: Any  # int32[]; not Int[Array, ""]: orbax restores into a tree of ShapeDtypeStructs
    params: Any
    opt_state: Any
    ema: Any = None
    frozen: Any = None

    @property
    def averaged(self) -> Any:
        """What is evaluated and exported of `params`: their average where there is one."""
        return self.params if self.ema is None else self.ema

    @property
    def averaged_params(self) -> Any:
        """All parameters of the model that is evaluated, the frozen base among them."""
        return joined(self.averaged, self.frozen)


@flax.struct.dataclass
class Metrics:
    """Of one step; those of the loss are `train.objective.Report`'s.

    Attributes:
      grad_norm: float32[], before clipping.
      learning_rate: float32[], the rate of this step.
      finite: bool[], whether loss and gradient were; with `on_non_finite: skip` the step did nothing where not.
    """

    loss: Float[Array, ""]
    tokens: Float[Array, ""]
    grad_norm: Float[Array, ""]
    learning_rate: Float[Array, ""]
    expert_load: tuple[Array, ...]
    balance_loss: Float[Array, ""] | None = None
    z_loss: Float[Array, ""] | None = None
    domain_loss: Float[Array, " domains"] | None = None
    domain_tokens: Float[Array, " domains"] | None = None
    finite: Bool[Array, ""] | None = None


def make_model(config: TrainConfig, mesh: Mesh | None) -> Qwen3:
    """The network to train, as it lies on the mesh.

    Raises:
      ValueError: the mesh does not divide the model or the batch, adapters that can not be, or a setting has no
        effect on a dense model.
    """
    if config.lora is not None and not config.init_from:
        raise ValueError("lora needs a base, got no init_from: add init_from=MODEL, or remove lora")
    architecture = ModelConfig.from_hf(config.model)
    if config.loss.balance_coefficient is not None and not any(sparse for sparse, _ in architecture.segments):
        raise ValueError(
            f"loss.balance_coefficient has an effect only on a model with experts, got "
            f"{config.loss.balance_coefficient} for a dense one: remove it"
        )
    if config.remat != "none" and config.layout == "unrolled" and target_platform() == "cpu":
        warnings.warn(
            f"remat={config.remat} has next to no effect on CPU with layout=unrolled, where the compiler joins what is "
            "to be computed twice: add layout=stacked",
            stacklevel=2,
        )
    placement = Placement() if mesh is None else place(architecture, mesh, config.mesh.table)
    if mesh is not None:
        for name, size, axis in (("rows", config.data.rows, "batch"), ("length", config.data.length, "sequence")):
            ways = math.prod(mesh.shape[axis] for axis in axes_of(axis, placement.rules))
            parts = config.micro_batches if name == "rows" else 1
            if size % (ways * parts):
                each = f" in each of {parts} micro-batches" if parts > 1 else ""
                raise ValueError(
                    f"data.{name} must divide over the {ways} devices of {axes_of(axis, placement.rules)}{each}, got "
                    f"{size}: change it or the mesh"
                )
    return Qwen3(
        architecture,
        layout=config.layout,
        moe_backend=config.moe_backend,
        attention_backend=config.attention_backend,
        remat=config.remat,
        dtype=jnp.dtype(config.dtype),
        placement=placement,
        qk_norm=config.ablation.qk_norm,
        lora=lora_of(config.lora, architecture),
    )


def init_state(model: Qwen3, config: TrainConfig, mesh: Mesh | None = None, params: Any = None) -> TrainState:
    """A fresh optimizer, and `params` or fresh parameters from the seed; each device makes its own part. A model with
    adapters gets fresh ones, and `params` is its frozen base."""

    def init(params: Any) -> TrainState:
        frozen, key = None, jax.random.key(config.seed)
        if model.lora is not None:
            frozen, params = params, init_adapters(model.config, model.lora, model.layout, key)
        elif params is None:
            params = model.init(key, jnp.zeros((1, 8), jnp.int32))["params"]
        with jax.numpy_dtype_promotion("standard"):
            opt_state = make_optimizer(config.optimizer, config.steps).init(params)
        ema = jax.tree.map(jnp.copy, params) if config.ema_decay else None  # its own memory: the step donates both
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=opt_state, ema=ema, frozen=frozen)

    if mesh is None:
        return init(params)
    layout = state_shardings(model, config, mesh)
    state: TrainState = jax.jit(init, out_shardings=layout, donate_argnums=0)(params)
    return state


def trained_specs(model: Qwen3) -> dict[str, Any]:
    """The declaration of what is trained: of all parameters, or of the adapters."""
    if model.lora is None:
        return spec_tree(model.config, model.layout)
    return adapter_tree(model.config, model.lora, model.layout)


def state_shardings(model: Qwen3, config: TrainConfig, mesh: Mesh) -> TrainState:
    """Where each part of the state lies: the optimizer's moments as the parameters they belong to."""

    def lie(specs: Any) -> Any:
        return jax.tree.map(
            lambda spec: named_sharding(mesh, spec.axes, model.placement.rules),
            specs,
            is_leaf=lambda leaf: isinstance(leaf, ParamSpec),
        )

    params = lie(trained_specs(model))
    frozen = None if model.lora is None else lie(spec_tree(model.config, model.layout))
    whole = NamedSharding(mesh, PartitionSpec())
    shapes = jax.tree.map(
        lambda spec: jax.ShapeDtypeStruct(spec.shape, jnp.float32),
        trained_specs(model),
        is_leaf=lambda leaf: isinstance(leaf, ParamSpec),
    )
    optimizer = make_optimizer(config.optimizer, config.steps)
    with jax.numpy_dtype_promotion("standard"):
        opt_shapes = jax.eval_shape(optimizer.init, shapes)

    def masked(leaf: Any) -> bool:  # Muon and AdamW have a tree each, without the other's parameters
        return isinstance(leaf, optax.MaskedNode)

    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        lambda leaf, sharding: leaf if masked(leaf) else sharding,
        opt_shapes,
        params,
        transform_non_params=lambda _: whole,
        is_leaf=masked,
    )
    ema = params if config.ema_decay else None
    return TrainState(step=whole, params=params, opt_state=opt_state, ema=ema, frozen=frozen)


def make_step(
    model: Qwen3, config: TrainConfig, mesh: Mesh | None = None, num_domains: int = 1
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The jitted step; to be called under `jax.set_mesh(mesh)` when there is a mesh.

    Args:
      num_domains: losses are reported for so many domains (the numbers in `Batch.domains`).
    """
    optimizer = make_optimizer(config.optimizer, config.steps)
    rate = schedule(config.optimizer, config.steps)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        TRACES["train_step"] += 1
        report, grads = gradients(
            model, state.params, batch, config.loss, config.micro_batches, num_domains, state.frozen
        )
        with jax.numpy_dtype_promotion("standard"):  # optax relies on it
            grad_norm = optax.tree.norm(grads)
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params, step=state.step)
            params = optax.apply_updates(state.params, updates)
            learning_rate = jnp.asarray(rate(state.step), jnp.float32)
            ema = state.ema if state.ema is None else optax.incremental_update(params, state.ema, 1 - config.ema_decay)
        # A gradient is not finite where the z-loss or the balance loss is not, which `loss` does not show.
        finite = jnp.isfinite(report.loss) & jnp.isfinite(grad_norm)
        new = dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state, ema=ema)
        if config.on_non_finite == "skip":
            kept = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, state)
            new = dataclasses.replace(kept, step=new.step)
        metrics = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
        return new, Metrics(**metrics, grad_norm=grad_norm, learning_rate=learning_rate, finite=finite)

    if mesh is None:
        return jax.jit(train_step, donate_argnums=0)
    layout = (state_shardings(model, config, mesh), NamedSharding(mesh, PartitionSpec()))
    return jax.jit(train_step, donate_argnums=0, out_shardings=layout)


def put_batch(batch: Batch, mesh: Mesh | None, rules: Rules) -> Batch:
    """A batch on its devices."""
    if mesh is None:
        return batch
    layout = named_sharding(mesh, ("batch", "sequence"), rules)
    return jax.tree.map(lambda array: jax.device_put(array, layout), batch)
