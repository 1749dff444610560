"""Each kernel compiles for each TPU, forward and backward, with tiles of the size that real models get, and is what
runs: its calls are in the program, and what it avoids is not."""

import jax
import jax.numpy as jnp
import pytest

from qwen3_jax.experts.grouped import grouped_matmul
from qwen3_jax.kernels import self_attention
from qwen3_jax.sharding import named_sharding
from qwen3_jax.sharding.ahead_of_time.compile import compile_ahead
from tests.tpu.conftest import kernels_of


def array(mesh, shape, axes, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=named_sharding(mesh, axes))


@pytest.mark.parametrize("sizes", [{"data": 2, "tensor": 2}, {"context": 4}], ids=str)
def test_attention(mesh_of_slice, sizes):
    mesh = mesh_of_slice(**sizes)

    def both(q, k, v, cotangent, ids):
        out, pull_back = jax.vjp(lambda *x: self_attention(*x, ids), q, k, v)
        return out, *pull_back(cotangent)

    length = 2048  # blocks of 512, as every longer sequence has
    queries = array(mesh, (2, length, 4, 128), ("batch", "sequence", "heads", "head_dim"))
    keys = array(mesh, (2, length, 2, 128), ("batch", "sequence", "cache_heads", "head_dim"))
    ids = array(mesh, (2, length), ("batch", "sequence"), jnp.int32)
    with jax.set_mesh(mesh):
        outcome = compile_ahead(jax.jit(both), queries, keys, keys, queries, ids)
    assert kernels_of(outcome) == ["splash_mha_dkv", "splash_mha_dq", "splash_mha_fwd"]
    part = length // sizes.get("context", 1)
    assert f"{part},{length}]" not in outcome.text  # neither scores nor a mask


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=["bfloat16", "float32"])
def test_grouped_matmul(mesh_of_slice, dtype):
    mesh = mesh_of_slice(data=1)

    def both(x, w, cotangent, sizes):
        y, pull_back = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes, "megablox"), x, w)
        return y, *pull_back(cotangent)

    rows, inner, outer, experts = 1000, 2048, 1536, 4
    shapes = (rows, inner), (experts, outer, inner), (rows, outer)
    arguments = [array(mesh, shape, (None,) * len(shape), dtype) for shape in shapes]
    with jax.set_mesh(mesh):
        outcome = compile_ahead(jax.jit(both), *arguments, array(mesh, (experts,), (None,), jnp.int32))
    assert kernels_of(outcome) == ["gmm", "gmm", "tgmm"]
    assert f"[{experts},{inner},{outer}]" not in outcome.text  # no transposed copy of the weights or of their gradient
