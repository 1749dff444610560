"""One training step: state -> state, jitted once, the old state donated."""

import collections
import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from qwen3_jax.config import ModelConfig
from qwen3_jax.lora import adapter_tree, init_adapters
from qwen3_jax.model import Qwen3
from qwen3_jax.params import ParamSpec, spec_tree
from qwen3_jax.placement import Placement, place
from sharding import Rules, axes_of, named_sharding
from train.config import TrainConfig
from train.data import Batch
from train.lora import joined, lora_of
from train.loss import cross_entropy
from train.optimizer import make_optimizer, schedule

TRACES: collections.Counter[str] = collections.Counter()  # how often each jitted function was traced


@flax.struct.dataclass
class TrainState:
    """What a checkpoint holds.

    Attributes:
      step: steps done.
      params: what is trained: the model's parameters, or its adapters.
      opt_state: the optimizer's.
      frozen: with adapters, the base's parameters, in the dtype of the activations; not in checkpoints. Else None.
    """

    step: Any  # int32[]; not Int[Array, ""]: orbax restores into a tree of ShapeDtypeStructs
    params: Any
    opt_state: Any
    frozen: Any = None

    @property
    def model_params(self) -> Any:
        """What the model is applied to."""
        return joined(self.params, self.frozen)


@flax.struct.dataclass
class Metrics:
    """Of one step."""

    loss: Float[Array, ""]
    tokens: Float[Array, ""]  # tokens the loss was taken on
    grad_norm: Float[Array, ""]
    learning_rate: Float[Array, ""]
    expert_load: tuple[Array, ...]  # int32[n, E] a run of sparse layers: assignments each expert got


def batch_loss(
    model: Qwen3, params: Any, batch: Batch, chunk: int
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], tuple[Array, ...]]]:
    """Mean cross-entropy over the batch's counted tokens; their number and the experts' load."""
    out = model.apply(
        {"params": params},
        batch.tokens,
        attention_mask=batch.segment_ids > 0,
        segment_ids=batch.segment_ids,
        logits_to_keep=1,  # the loss takes its own logits, chunk by chunk; these are dropped by the compiler
    )
    head = params["embed_tokens" if model.config.tie_word_embeddings else "lm_head"]
    rules = model.placement.rules
    total, count = cross_entropy(out.hidden, head, batch.targets, batch.loss_mask, chunk, rules)
    return total / jnp.maximum(count, 1.0), (count, out.expert_load)


def make_model(config: TrainConfig, mesh: Mesh | None) -> Qwen3:
    """The network to train, as it lies on the mesh.

    Raises:
      ValueError: the mesh does not divide the model or the batch, or adapters that can not be.
    """
    if config.lora is not None and not config.init_from:
        raise ValueError("lora needs a base, got no init_from: add init_from=MODEL, or remove lora")
    architecture = ModelConfig.from_hf(config.model)
    placement = Placement() if mesh is None else place(architecture, mesh, config.mesh.table)
    if mesh is not None:
        for name, size, axis in (("rows", config.data.rows, "batch"), ("length", config.data.length, "sequence")):
            ways = math.prod(mesh.shape[axis] for axis in axes_of(axis, placement.rules))
            if size % ways:
                raise ValueError(
                    f"data.{name} must divide over the {ways} devices of {axes_of(axis, placement.rules)}, got {size}: "
                    "change it or the mesh"
                )
    return Qwen3(
        architecture,
        layout=config.layout,
        remat=config.remat,
        dtype=jnp.dtype(config.dtype),
        placement=placement,
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
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=opt_state, frozen=frozen)

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
    opt_state = optax.tree_utils.tree_map_params(
        optimizer, lambda _, sharding: sharding, opt_shapes, params, transform_non_params=lambda _: whole
    )
    return TrainState(step=whole, params=params, opt_state=opt_state, frozen=frozen)


def make_step(
    model: Qwen3, config: TrainConfig, mesh: Mesh | None = None
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The jitted step; to be called under `jax.set_mesh(mesh)` when there is a mesh."""
    optimizer = make_optimizer(config.optimizer, config.steps)
    rate = schedule(config.optimizer, config.steps)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        TRACES["train_step"] += 1
        (loss, (tokens, expert_load)), grads = jax.value_and_grad(
            lambda params: batch_loss(model, joined(params, state.frozen), batch, config.loss.chunk), has_aux=True
        )(state.params)
        with jax.numpy_dtype_promotion("standard"):  # optax relies on it
            grad_norm = optax.tree.norm(grads)
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            learning_rate = jnp.asarray(rate(state.step), jnp.float32)
        metrics = Metrics(
            loss=loss, tokens=tokens, grad_norm=grad_norm, learning_rate=learning_rate, expert_load=expert_load
        )
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state, frozen=state.frozen), metrics

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
