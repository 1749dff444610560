"""One training step: state -> state, jitted once, the old state donated; and compiled for devices that are not here."""

import collections
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float

from qwen3_jax.config import ModelConfig
from qwen3_jax.network.model import Qwen3
from qwen3_jax.parameters.adapters import Lora, make_lora
from qwen3_jax.parameters.placement import Placement, place
from qwen3_jax.sharding import MeshConfig, Rules, axes_of
from qwen3_jax.sharding.ahead_of_time.compile import Outcome, compile_ahead, local_bytes
from qwen3_jax.train.config import TrainConfig
from qwen3_jax.train.data import Batch
from qwen3_jax.train.objectives.objective import Losses, gradients
from qwen3_jax.train.optimizer import make_optimizer, schedule
from qwen3_jax.train.settings import DataConfig, LoraConfig
from qwen3_jax.train.state import TrainState, abstract_state, next_average, state_shardings
from qwen3_jax.train.streams import batch_sharding

TRACES: collections.Counter[str] = collections.Counter()  # how often each jitted function was traced


@flax.struct.dataclass
class Metrics(Losses):
    """Of one step, its losses among them.

    Attributes:
      grad_norm: float32[], before clipping.
      learning_rate: float32[], the rate of this step.
      finite: bool[], whether loss and gradient were; with `on_non_finite: skip` the step did nothing where not.
    """

    grad_norm: Float[Array, ""]
    learning_rate: Float[Array, ""]
    finite: Bool[Array, ""]


def make_model(config: TrainConfig, mesh: Mesh | None) -> Qwen3:
    """The network to train, as it lies on the mesh.

    Raises:
      ValueError: the mesh does not divide the model or the batch, adapters that can not be, or a setting has no
        effect on a dense model.
    """
    if config.lora is not None and not config.init_from:
        raise ValueError("lora needs a base, got no init_from: add init_from=MODEL, or remove lora")
    architecture = ModelConfig.from_hf(config.model)
    if config.data.length > architecture.context_length:
        raise ValueError(
            f"data.length must be at most the model's context of {architecture.context_length} tokens, got "
            f"{config.data.length}: shorten it, or set model.max_position_embeddings or model.rope_scaling"
        )
    given = {"balance_coefficient": config.loss.balance_coefficient is not None}
    given["balance"] = config.loss.balance not in ("global", "none")
    for name in given:
        if given[name] and not any(sparse for sparse, _ in architecture.segments):
            raise ValueError(
                f"loss.{name} has an effect only on a model with experts, got {getattr(config.loss, name)} for a dense "
                "one: remove it"
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


def lora_of(config: LoraConfig | None, architecture: ModelConfig) -> Lora | None:
    """The adapters of a run; None where all parameters are trained.

    Raises:
      ValueError: as `qwen3_jax.parameters.adapters.make_lora`; the line begins with "lora.".
    """
    if config is None:
        return None
    try:
        return make_lora(architecture, **dataclasses.asdict(config))
    except ValueError as error:
        raise ValueError(f"lora.{error}") from None


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
            ema = next_average(state.ema, params, config.ema_decay, state.step)
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


def plan_train(
    config: ModelConfig, mesh: Mesh, rules: Rules, sequence_length: int, batch_size: int, **changes: Any
) -> tuple[Outcome, dict[str, int]]:
    """The project's own step with float32 parameters and AdamW, bfloat16 compute, stacked layers, every layer
    rematerialised (remat "full").

    For GPUs attention is XLA's form: cuDNN's can be compiled only where cuDNN is.

    Args:
      batch_size: sequences of the global batch.
      changes: fields of `TrainConfig` that differ.

    Returns:
      the outcome, and bytes per device of "parameters" and "optimizer".

    Raises:
      ValueError: the mesh does not divide the model or the batch.
    """
    sizes: dict[str, Any] = {str(name): int(size) for name, size in mesh.shape.items()}
    settings: dict[str, Any] = {
        "model": config.to_hf(),
        "layout": "stacked",
        "dtype": "bfloat16",
        "remat": "full",
        "mesh": MeshConfig(**sizes, rules=dict(rules)),
        "data": DataConfig(rows=batch_size, length=sequence_length),
        "steps": 1000,
    }
    return plan_run(TrainConfig(**(settings | changes)), mesh)


def plan_run(train: TrainConfig, mesh: Mesh) -> tuple[Outcome, dict[str, int]]:
    """The step of a training configuration, on the mesh that its own sizes make of the devices that are planned for.

    Returns, raises: as `plan_train`.
    """
    if mesh.devices.flat[0].platform == "gpu":
        train = dataclasses.replace(train, attention_backend="xla")
    model = make_model(train, mesh)
    state = abstract_state(model, train, mesh)
    layout = batch_sharding(mesh, model.placement.rules)

    def row(dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((train.data.rows, train.data.length), dtype, sharding=layout)

    whole = {name: row(jnp.int32) for name in ("tokens", "targets", "segment_ids", "domains")}
    batch = Batch(**whole, loss_mask=row(jnp.bool_))
    step = make_step(model, train, mesh)  # makes a few arrays, for which a mesh without devices would be in the way
    with jax.set_mesh(mesh):
        outcome = compile_ahead(step, state, batch)
    return outcome, {"parameters": local_bytes(state.params), "optimizer": local_bytes(state.opt_state)}
