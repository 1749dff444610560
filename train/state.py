"""The training state: its parts, a fresh one, and where it lies on a mesh."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Array, Int

from qwen3_jax.network.model import Qwen3
from qwen3_jax.parameters.adapters import adapter_tree, init_adapters, with_adapters
from qwen3_jax.parameters.specs import ParamSpec, spec_tree
from qwen3_jax.sharding import named_sharding
from qwen3_jax.train.config import TrainConfig
from qwen3_jax.train.optimizer import make_optimizer


@flax.struct.dataclass
class TrainState:
    """What a checkpoint holds.

    Attributes:
      step: steps done.
      params: what is trained: the model's parameters, or its adapters.
      opt_state: the optimizer's.
      ema: exponential moving average of the parameters, see `next_average`, when `ema_decay` is set.
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


def next_average(average: Any, params: Any, decay: float, step: Int[Array, ""]) -> Any:
    """The average after a step that made `params`; None stays None.

    Step n (from 1) decays by min(decay, (1 + n) / (10 + n)), so that a short run's average is not mostly the parameters
    it began with: the warm-up of `tf.train.ExponentialMovingAverage` with `num_updates`, and of
    torch-ema.

    Args:
      step: steps done before this one.
    """
    if average is None:
        return None
    taken = jnp.maximum(jnp.float32(1 - decay), 9.0 / (11.0 + jnp.asarray(step, jnp.float32)))
    return optax.incremental_update(params, average, taken)


def trained_specs(model: Qwen3) -> dict[str, Any]:
    """The declaration of what is trained: of all parameters, or of the adapters."""
    if model.lora is None:
        return spec_tree(model.config, model.layout)
    return adapter_tree(model.config, model.lora, model.layout)


def abstract_state(model: Qwen3, config: TrainConfig, mesh: Mesh | None) -> TrainState:
    """Shapes, dtypes and shardings of the state, the frozen base among it; nothing is allocated."""
    shapes = _state_shapes(model, config)
    if mesh is None:
        here = SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: here, shapes)
    else:
        shardings = state_shardings(model, config, mesh)
    state: TrainState = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )
    return state


def state_shardings(model: Qwen3, config: TrainConfig, mesh: Mesh) -> TrainState:
    """Where each part of the state lies: the optimizer's moments as the parameters they belong to."""

    def lie(spec: ParamSpec) -> NamedSharding:
        return named_sharding(mesh, spec.axes, model.placement.rules)

    def masked(leaf: Any) -> bool:  # Muon and AdamW have a tree each, without the other's parameters
        return isinstance(leaf, optax.MaskedNode)

    params = _map_specs(lie, trained_specs(model))
    whole = NamedSharding(mesh, PartitionSpec())
    opt_state = optax.tree_utils.tree_map_params(
        make_optimizer(config.optimizer, config.steps),
        lambda leaf, sharding: leaf if masked(leaf) else sharding,
        _state_shapes(model, config).opt_state,
        params,
        transform_non_params=lambda _: whole,
        is_leaf=masked,
    )
    return TrainState(
        step=whole,
        params=params,
        opt_state=opt_state,
        ema=params if config.ema_decay else None,
        frozen=None if model.lora is None else _map_specs(lie, spec_tree(model.config, model.layout)),
    )


def _state_shapes(model: Qwen3, config: TrainConfig) -> TrainState:
    def shape(dtype: Any) -> Callable[[ParamSpec], jax.ShapeDtypeStruct]:
        return lambda spec: jax.ShapeDtypeStruct(spec.shape, dtype)

    params = _map_specs(shape(jnp.float32), trained_specs(model))
    with jax.numpy_dtype_promotion("standard"):
        opt_state = jax.eval_shape(make_optimizer(config.optimizer, config.steps).init, params)
    return TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        params=params,
        opt_state=opt_state,
        ema=params if config.ema_decay else None,
        frozen=None if model.lora is None else _map_specs(shape(model.dtype), spec_tree(model.config, model.layout)),
    )


def _map_specs(function: Callable[[ParamSpec], Any], specs: Any) -> Any:
    return jax.tree.map(function, specs, is_leaf=lambda leaf: isinstance(leaf, ParamSpec))


def joined(params: Any, frozen: Any) -> Any:
    """What is trained and the frozen base, as the parameters of one model."""
    return params if frozen is None else with_adapters(frozen, params)
