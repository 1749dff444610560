"""Rotary embeddings against published test vectors and against transformers."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.config import YarnConfig
from qwen3_jax.network.rope import apply_rope, inverse_frequencies, rope_cos_sin, yarn_attention_factor
from tests.tiny import dense_config

FULL = dense_config(head_dim=128, rope_theta=1e6)


def yarn(factor: float) -> YarnConfig:
    return YarnConfig(factor=factor, original_max_position_embeddings=32768)


def test_yarn_vectors_for_factor_4():
    plain, one = inverse_frequencies(FULL)
    scaled, factor = inverse_frequencies(dataclasses.replace(FULL, yarn=yarn(4.0)))
    assert one == 1.0
    assert factor == pytest.approx(1.138629436111989, rel=1e-12)
    planes = [23, 24, 25, 30, 35, 39, 40]
    expected = [1, 0.955882, 0.911765, 0.691176, 0.470588, 0.294118, 0.25]
    np.testing.assert_allclose((scaled / plain)[planes], expected, atol=1e-6)
    np.testing.assert_allclose(scaled[[24, 40, 63]], [0.005375321488827467, 4.4456985e-05, 3.1023444e-07], rtol=1e-6)


def test_yarn_vectors_for_factor_2():
    plain, _ = inverse_frequencies(FULL)
    scaled, factor = inverse_frequencies(dataclasses.replace(FULL, yarn=yarn(2.0)))
    assert factor == pytest.approx(1.0693147180559945, rel=1e-12)
    np.testing.assert_allclose((scaled / plain)[[24, 40]], [0.970588, 0.5], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"attention_factor": 1.5}, 1.5),
        ({"mscale": 1.0, "mscale_all_dim": 0.5}, (0.1 * np.log(4) + 1) / (0.05 * np.log(4) + 1)),
        ({"factor": 1.0}, 1.0),
    ],
)
def test_attention_factor_spellings(changes, expected):
    assert yarn_attention_factor(dataclasses.replace(yarn(4.0), **changes)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 4096, "truncate": False},
        {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 512,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
        },
    ],
)
def test_cos_and_sin_equal_transformers(scaling):
    pytest.importorskip("torch")
    import torch
    from transformers import Qwen3Config
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

    config = dense_config(head_dim=128, rope_theta=1e6, max_position_embeddings=131072)
    if scaling:
        fields = {k: v for k, v in scaling.items() if k != "rope_type"}
        config = dataclasses.replace(config, yarn=YarnConfig(**fields))
    positions = np.concatenate([np.arange(40), np.arange(40000, 40040)])[None]
    theirs = Qwen3RotaryEmbedding(Qwen3Config(**config.to_hf()))
    cos, sin = theirs(torch.zeros(1, 1, dtype=torch.float32), torch.tensor(positions))
    ours = rope_cos_sin(jnp.asarray(positions, jnp.int32), config, jnp.float32)
    # Their last axis repeats the planes; a last-digit difference of a frequency is 40,000 times larger in the angle.
    for got, expected in zip(ours, (cos, sin), strict=True):
        np.testing.assert_allclose(np.asarray(got), expected.numpy()[..., :64], atol=5e-3)
        np.testing.assert_allclose(np.asarray(got)[:, :40], expected.numpy()[:, :40, :64], atol=5e-6)


def test_turning_keeps_length_and_depends_on_the_distance_only():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 1, 16)), jnp.float32)

    def score(first: int, second: int) -> float:
        positions = jnp.array([[first, second]], jnp.int32)
        turned = apply_rope(x, *rope_cos_sin(positions, dense_config(), jnp.float32))
        np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)
        return float(jnp.sum(turned[0, 0] * turned[0, 1]))

    assert score(3, 10) == pytest.approx(score(103, 110), abs=1e-4)
    assert score(3, 10) != pytest.approx(score(3, 11), abs=1e-2)
