"""Prefill and decoding, compiled for devices that are not here."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qwen3_jax.config import ModelConfig
from qwen3_jax.infer.decode import WIDE, DecodeState, decode, prefill
from qwen3_jax.infer.engine import plain_state
from qwen3_jax.infer.generate import STEPS
from qwen3_jax.network.buckets import prompt_bucket
from qwen3_jax.network.cache import abstract_cache
from qwen3_jax.network.model import Qwen3
from qwen3_jax.parameters.placement import place
from qwen3_jax.parameters.specs import Layout, Params, ParamSpec, spec_tree
from qwen3_jax.sharding import Rules, axes_of, named_sharding
from qwen3_jax.sharding.ahead_of_time.compile import Outcome, abstract, compile_ahead, local_bytes


def plan_prefill(
    config: ModelConfig, mesh: Mesh, rules: Rules, sequence_length: int, batch_size: int
) -> tuple[Outcome, dict[str, int], int]:
    """The last chunk of a prompt, bfloat16, which meets the cache of all of it.

    Returns:
      the outcome, bytes per device of "parameters" and "cache", and the number of chunks of the prompt.

    Raises:
      ValueError: the mesh does not divide the model or the batch.
    """
    model, params = abstract_model(config, mesh, rules, batch_size)
    bucket = prompt_bucket(sequence_length)
    chunk = prompt_bucket(1)
    while chunk < bucket and prompt_bucket(2 * chunk) == 2 * chunk and prompt_bucket(chunk + 1) == 2 * chunk:
        chunk *= 2
    cache = abstract_cache(config, batch_size, bucket, "stacked", jnp.bfloat16, model.placement, mesh=mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    tokens = jax.ShapeDtypeStruct((batch_size, chunk), jnp.int32, sharding=whole)
    real = jax.ShapeDtypeStruct((batch_size, chunk), jnp.bool_, sharding=whole)
    with jax.set_mesh(mesh):
        outcome = compile_ahead(prefill, model, params, cache, tokens, real)
    return outcome, {"parameters": local_bytes(params), "cache": local_bytes(cache)}, bucket // chunk


def plan_decode(
    config: ModelConfig, mesh: Mesh, rules: Rules, sequence_length: int, batch_size: int, lock_step: bool = True
) -> tuple[Outcome, dict[str, int]]:
    """The loop that makes 32 tokens a row with a cache of `sequence_length` slots, sampling included, bfloat16.

    Args:
      lock_step: rows began together; else each has a length of its own.

    Returns:
      the outcome, and bytes per device of "parameters" and "cache".

    Raises:
      ValueError: the mesh does not divide the model or the batch.
    """
    model, params = abstract_model(config, mesh, rules, batch_size)
    state = abstract_decode_state(model, mesh, batch_size, sequence_length, lock_step)
    with jax.set_mesh(mesh):
        outcome = compile_ahead(decode, model, params, state, valid_vocab=config.vocab_size, num_steps=STEPS)
    return outcome, {"parameters": local_bytes(params), "cache": local_bytes(state.cache)}


def abstract_model(config: ModelConfig, mesh: Mesh, rules: Rules, batch_size: int) -> tuple[Qwen3, Params]:
    """The model on the mesh, and its bfloat16 parameters as shapes."""
    placement = place(config, mesh, rules)
    ways = int(np.prod([mesh.shape[axis] for axis in axes_of("batch", placement.rules)]))
    if batch_size % ways:
        raise ValueError(
            f"the batch must divide over the {ways} devices of {axes_of('batch', placement.rules)}, got {batch_size}: "
            "change it or the mesh"
        )
    params = jax.tree.map(
        lambda spec: jax.ShapeDtypeStruct(
            spec.shape, jnp.bfloat16, sharding=named_sharding(mesh, spec.axes, placement.rules)
        ),
        spec_tree(config, "stacked"),
        is_leaf=lambda leaf: isinstance(leaf, ParamSpec),
    )
    return Qwen3(config, param_dtype=jnp.bfloat16, placement=placement), params


def abstract_decode_state(
    model: Qwen3, mesh: Mesh, batch_size: int, capacity: int, lock_step: bool = True
) -> DecodeState:
    """`qwen3_jax.infer.decode.DecodeState` as shapes, laid out as `infer.generate` does."""
    layout: Layout = "stacked"
    cache = abstract_cache(model.config, batch_size, capacity, layout, jnp.bfloat16, model.placement, lock_step, mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    by_row = named_sharding(mesh, ("batch", None), model.placement.rules)
    one = jax.eval_shape(lambda: plain_state(None, 1, model.config.vocab_size))
    rows = abstract(jax.tree.map(lambda x: x.update(shape=(batch_size, *x.shape[1:])), one.rows), whole)
    wide: Any = {name: getattr(rows, name).update(sharding=by_row) for name in WIDE}
    return DecodeState(cache=cache, rows=dataclasses.replace(rows, **wide), tokens=abstract(one.tokens, whole))
