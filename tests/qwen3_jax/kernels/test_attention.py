"""Attention kernels, interpreted on CPU, are the XLA form: forward, gradients, packed documents, meshes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.kernels import choose_attention, cudnn, self_attention
from qwen3_jax.kernels.masks import document_ids
from qwen3_jax.kernels.splash import block_size
from qwen3_jax.network.model import Qwen3
from qwen3_jax.sharding import DEFAULT_RULES, make_mesh
from tests.tiny import dense_config, random_params

LENGTH, HEADS, KV_HEADS, HEAD_DIM = 256, 4, 2, 16


def arrays(length=LENGTH, rows=2, dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = [(rows, length, heads, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
    return [jnp.asarray(rng.normal(size=shape).astype(dtype)) for shape in shapes]


def packed(length=LENGTH, rows=2):
    """Documents that end inside blocks, and padding."""
    ends = np.array([[length // 3, length // 2 + 5, length - 7], [length // 5, length - 40, length - 1]])
    ids = 1 + (np.arange(length)[None, :, None] >= ends[:, None, :]).sum(-1)
    return np.where(ids == 4, 0, ids).astype(np.int32)[np.arange(rows) % 2]


@partial(jax.jit, static_argnames="implementation")
def attend(q, k, v, cotangent, ids, implementation):
    out, pull_back = jax.vjp(lambda *x: self_attention(*x, ids, implementation), q, k, v)
    return out, *pull_back(cotangent)


def assert_close(got, expected, tolerance=1e-5):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max(), rtol=0)


@pytest.mark.parametrize(("length", "with_ids"), [(LENGTH, True), (LENGTH, False), (200, True), (40, False)])
def test_splash_is_the_xla_form_and_so_are_its_gradients(length, with_ids):
    x, ids = arrays(length), packed(length) if with_ids else None
    assert_close(attend(*x, ids, implementation="splash"), attend(*x, ids, implementation="xla"))


@pytest.mark.parametrize("sizes", [{"data": 2, "tensor": 2}, {"context": 2}], ids=str)
def test_splash_on_a_mesh_is_splash_on_one_device(sizes):
    x, ids = arrays(), packed()
    expected = attend(*x, ids, implementation="xla")
    mesh = make_mesh(**sizes, devices=jax.devices()[: int(np.prod(list(sizes.values())))])
    with jax.set_mesh(mesh):
        got = jax.jit(lambda *args: attend(*args, implementation="splash"))(*x, ids)
    assert_close(got, expected)


@pytest.mark.parametrize("sizes", [{"fsdp": 2, "tensor": 2}, {"context": 4}], ids=str)
@pytest.mark.parametrize("with_ids", [True, False])
def test_what_cudnn_is_told_is_the_xla_form(sizes, with_ids, monkeypatch):
    """cuDNN itself runs on GPU only: JAX's own implementation takes the same arguments in its place."""
    monkeypatch.setattr(cudnn, "_IMPLEMENTATION", "xla")
    x, ids = arrays(32), jnp.asarray(packed(32)) if with_ids else None
    expected = attend(*x, ids, implementation="xla")[0]
    np.testing.assert_allclose(cudnn.cudnn_attention(*x[:3], ids, DEFAULT_RULES), expected, atol=1e-5)
    with jax.set_mesh(make_mesh(**sizes, devices=jax.devices()[:4])):
        got = jax.jit(lambda *args: cudnn.cudnn_attention(*args, DEFAULT_RULES))(*x[:3], ids)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_the_model_with_splash_is_the_model_without():
    config = dense_config(num_hidden_layers=2)
    params = {"params": random_params(config)}
    tokens = np.random.default_rng(0).integers(0, 512, (2, 128)).astype(np.int32)
    ids = packed(128)
    given = {"attention_mask": ids > 0, "segment_ids": ids}
    logits = [
        jax.jit(Qwen3(config, attention_backend=backend).apply)(params, tokens, **given).logits
        for backend in ("splash", "xla")
    ]
    real = ids > 0  # what stands on padding differs: nothing reads it
    np.testing.assert_allclose(logits[0][real], logits[1][real], atol=2e-4)


def test_no_mask_of_queries_and_keys_exists_beside_a_kernel():
    config = dense_config(num_hidden_layers=1)
    params, tokens = {"params": random_params(config)}, np.zeros((2, 384), np.int32)
    texts = {
        backend: str(jax.make_jaxpr(Qwen3(config, attention_backend=backend).apply)(params, tokens, tokens > 0))
        for backend in ("splash", "xla")
    }
    assert "bool[2,384,384]" in texts["xla"]
    assert ",384,384]" not in texts["splash"]  # a block of scores is [384, 384]


def test_padding_is_a_document_of_its_own():
    real = jnp.array([[False, True, True, True]])
    segments = jnp.array([[0, 1, 1, 2]], jnp.int32)
    assert document_ids(real, segments).tolist() == [[-1, 1, 1, 2]]
    assert document_ids(real, None).tolist() == [[-1, 1, 1, 1]]
    assert document_ids(None, segments) is segments
    assert document_ids(None, None) is None


@pytest.mark.parametrize(
    ("platform", "length", "dtype", "chosen"),
    [
        ("tpu", 4096, jnp.bfloat16, "splash"),
        ("tpu", 4096, jnp.float32, "splash"),
        ("tpu", 64, jnp.bfloat16, "xla"),
        ("gpu", 4096, jnp.bfloat16, "cudnn"),
        ("gpu", 4095, jnp.bfloat16, "xla"),  # cuDNN's backward pass refuses odd lengths
        ("gpu", 4096, jnp.float32, "xla"),
        ("cpu", 4096, jnp.bfloat16, "xla"),
    ],
)
def test_the_choice_by_platform_and_shape(platform, length, dtype, chosen):
    assert choose_attention("auto", length, 128, dtype, platform) == chosen
    assert choose_attention("xla", length, 128, dtype, platform) == "xla"


def test_a_wrong_backend_is_one_line():
    with pytest.raises(ValueError, match="attention_backend must be one of auto, xla, splash, cudnn, got 'flash'"):
        choose_attention("flash", 4096, 128, jnp.float32)
    with pytest.raises(ValueError, match="attention_backend='cudnn' runs on gpu, got tpu: use 'auto'"):
        choose_attention("cudnn", 4096, 128, jnp.bfloat16, "tpu")


def test_blocks_divide_the_sequence():
    assert [block_size(length) for length in (128, 384, 640, 1152, 4096)] == [128, 384, 128, 384, 512]
