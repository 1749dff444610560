"""The network against transformers on random weights: float32 to rounding, bfloat16 no worse than transformers' own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from qwen3_jax.checkpoints.load import from_pretrained  # noqa: E402
from qwen3_jax.network.cache import init_cache  # noqa: E402
from tests.qwen3_jax.network import hf_reference as hf  # noqa: E402

LENGTHS = (1, 2, 31, 64, 165, 300)
TOLERANCE = 2e-5  # of the largest logit


def padded(side, seed=0):
    """Prompts of `LENGTHS` tokens in one batch, and which tokens are real."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, hf.BASE["vocab_size"], (len(LENGTHS), max(LENGTHS))).astype(np.int32)
    slots, lengths = np.arange(max(LENGTHS)), np.asarray(LENGTHS)[:, None]
    mask = slots < lengths if side == "right" else slots >= max(LENGTHS) - lengths
    return tokens, mask


def run(model, params, *args, **kwargs):
    return np.asarray(jax.jit(model.apply)({"params": params}, *args, **kwargs).logits)


def load(variant, directory, layout="stacked", dtype="float32", **changes):
    reference = hf.build(variant, **changes)
    return reference, *from_pretrained(hf.save(reference, directory), dtype=dtype, layout=layout)


def assert_close(got, expected):
    assert np.abs(got - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("variant", hf.VARIANTS)
def test_float32_logits_are_those_of_transformers(variant, tmp_path):
    """Prompts of 1 to 300 tokens, padded on either side; real tokens are compared."""
    layout = "unrolled" if variant in ("tied", "moe_mlp_only") else "stacked"
    reference, model, params = load(variant, tmp_path, layout)
    apply = jax.jit(model.apply)
    for side in ("right", "left"):
        tokens, mask = padded(side)
        got = np.asarray(apply({"params": params}, tokens, attention_mask=mask).logits)
        for row, real in enumerate(mask):
            # Each row alone and unpadded: the reference's own padding does not enter.
            expected = hf.logits(reference, tokens[row : row + 1, real])[0]
            assert_close(got[row, real], expected)


@pytest.mark.parametrize("variant", ["yarn", "moe"])
def test_a_prompt_without_padding(variant, tmp_path):
    reference, model, params = load(variant, tmp_path)
    tokens, _ = padded("right", seed=1)
    assert_close(run(model, params, tokens[:1]), hf.logits(reference, tokens[:1]))


@pytest.mark.parametrize(("variant", "layout"), [("tied", "stacked"), ("moe_mlp_only", "unrolled")])
def test_cached_decode_gives_the_logits_of_transformers_full_forward(variant, layout, tmp_path):
    reference, model, params = load(variant, tmp_path, layout)
    random = np.random.default_rng(2)
    tokens = random.integers(0, hf.BASE["vocab_size"], (2, 16)).astype(np.int32)
    mask = np.ones((2, 16), bool)
    mask[1, :5] = False  # a shorter prompt, padded on the left
    apply = jax.jit(model.apply)
    cache = init_cache(model.config, 2, 24, layout, jnp.float32)
    out = apply({"params": params}, tokens[:, :12], attention_mask=mask[:, :12], cache=cache)
    pieces = [out.logits]
    for at in range(12, 16):
        out = apply({"params": params}, tokens[:, at : at + 1], cache=out.cache)
        pieces.append(out.logits)
    got = np.concatenate(pieces, axis=1)
    for row, real in enumerate(mask):
        assert_close(got[row, real], hf.logits(reference, tokens[row : row + 1, real])[0])


def divergence(reference, logits):
    """Mean over tokens of KL(softmax(reference) || softmax(logits))."""
    p = torch.log_softmax(torch.tensor(reference, dtype=torch.float64), -1)
    q = torch.log_softmax(torch.tensor(logits, dtype=torch.float64), -1)
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize(("variant", "layout"), [("tied", "unrolled"), ("untied", "stacked"), ("moe", "stacked")])
def test_bfloat16_is_as_close_to_float32_as_transformers_is(variant, layout, tmp_path):
    reference = hf.build(variant).to(torch.bfloat16)
    hf.save(reference, tmp_path)
    model, params = from_pretrained(tmp_path, dtype="bfloat16", layout=layout)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    tokens = np.random.default_rng(3).integers(0, hf.BASE["vocab_size"], (6, 300)).astype(np.int32)
    theirs = hf.logits(reference, tokens)
    exact = hf.logits(reference.float(), tokens)  # the same bfloat16 weights, computed in float32
    ours = divergence(exact, run(model, params, tokens))
    assert ours < 1e-3
    assert ours <= 1.2 * divergence(exact, theirs)
