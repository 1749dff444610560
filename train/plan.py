"""The training step, compiled for devices that are not here."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from qwen3_jax.config import ModelConfig
from qwen3_jax.sharding import MeshConfig, Rules, named_sharding
from qwen3_jax.sharding.ahead_of_time.compile import Outcome, compile_ahead, local_bytes
from qwen3_jax.train.config import TrainConfig
from qwen3_jax.train.data import Batch
from qwen3_jax.train.settings import DataConfig
from qwen3_jax.train.state import abstract_state
from qwen3_jax.train.step import make_model, make_step


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
    settings: dict[str, Any] = {
        "model": config.to_hf(),
        "layout": "stacked",
        "dtype": "bfloat16",
        "remat": "full",
        "mesh": MeshConfig(**mesh_sizes(mesh), rules=dict(rules)),
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
    layout = named_sharding(mesh, ("batch", "sequence"), model.placement.rules)

    def row(dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((train.data.rows, train.data.length), dtype, sharding=layout)

    batch = Batch(
        tokens=row(jnp.int32),
        targets=row(jnp.int32),
        loss_mask=row(jnp.bool_),
        segment_ids=row(jnp.int32),
        domains=row(jnp.int32),
    )
    step = make_step(model, train, mesh)  # makes a few arrays, for which a mesh without devices would be in the way
    with jax.set_mesh(mesh):
        outcome = compile_ahead(step, state, batch)
    return outcome, {"parameters": local_bytes(state.params), "optimizer": local_bytes(state.opt_state)}


def mesh_sizes(mesh: Mesh) -> dict[str, Any]:
    """In: a mesh     Out: {"data": 1, "fsdp": 8, ...}"""
    return {str(name): int(size) for name, size in mesh.shape.items()}
