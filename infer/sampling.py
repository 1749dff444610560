"""Choosing the next token: penalties, temperature, top-k, top-p and min-p, with one value of each for each row.

`process_logits` is the definition: the distribution that is sampled, equal to the warpers of `transformers` (5.x) in
their own order. `sample` draws from that distribution without sorting the vocabulary, which would cost 40 ms a row on
a CPU. It looks at the best few logits only, in tiers of 80, 4096 and all of them. A row is answered by the first tier
that provably holds everything its token depends on:

    top-k on             every logit equal to the k-th is inside the tier
    top-p or min-p cuts  the last logit of the tier is removed already, so everything behind it is removed too
    nothing cuts         the row's uniform number falls on a token inside the tier

A later tier runs only for the rows that need it, so no row's token depends on what its neighbours need.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int, Key

from qwen3_jax.infer.penalties import History, penalize
from qwen3_jax.infer.sampling_params import SamplingParams
from qwen3_jax.sharding import target_platform

TIERS = (80, 4096)  # 80 leaves top_k = 64 some room for ties
TIER_GAIN = 16  # a tier is worth having when the vocabulary is this many times larger
BLOCK = 64  # the best n logits lie in the n blocks with the best maxima


def process_logits(
    logits: Float[Array, "B V"], history: History, params: SamplingParams, valid_vocab: int
) -> Float[Array, "B V"]:
    """The logits whose softmax is sampled: penalties, temperature, top-k, top-p, min-p; `-inf` where removed, and from
    `valid_vocab` on, where the vocabulary is padding.

    A greedy row keeps its one token. This function sorts: it is the definition. `sample` is the fast way to a token
    and `sampling_log_probs` that to the log-probabilities of given ones.

    Sources: transformers 5.23, generation/logits_process.py; see `penalize` for what comes before temperature.
    """
    scaled = _scaled(logits, history, params, valid_vocab)
    values, tokens = best_logits(scaled, logits.shape[1])
    rows = jnp.arange(logits.shape[0])[:, None]
    kept = jnp.zeros(logits.shape, bool).at[rows, tokens].set(_cut(values, scaled, params).kept)
    largest = jnp.arange(logits.shape[1])[None, :] == first_largest(scaled)[:, None]
    return jnp.where(jnp.where(params.greedy[:, None], largest, kept), scaled, -jnp.inf)


def sample(
    logits: Float[Array, "B V"],
    history: History,
    params: SamplingParams,
    keys: Key[Array, " B"],
    valid_vocab: int,
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """One token a row, drawn from `softmax(process_logits(...))` with one uniform number from the row's own key.

    Rows of the vocabulary from `valid_vocab` (static) on are padding and are never taken. A greedy row takes its
    largest logit after the penalties, the first one among equals. No row depends on another one.

    Returns:
      the tokens, int32[B], and the log-probability that each was drawn with, float32[B]: 0 in a greedy row.
    """
    scaled = _scaled(logits, history, params, valid_vocab)
    largest = first_largest(scaled)
    certain = jnp.zeros(largest.shape, jnp.float32)

    def draw() -> tuple[Array, Array]:
        token, log_prob = _by_tiers(_drawn, scaled, params, _uniform(keys), _sizes(scaled))
        return jnp.where(params.greedy, largest, token), jnp.where(params.greedy, certain, log_prob)

    token, log_prob = lax.cond(jnp.all(params.greedy), lambda: (largest, certain), draw)
    return jnp.minimum(token, valid_vocab - 1), log_prob  # a token even where the logits are NaN


def sampling_log_probs(
    logits: Float[Array, "B V"], history: History, params: SamplingParams, tokens: Int[Array, " B"], valid_vocab: int
) -> Float[Array, " B"]:
    """`log_softmax(process_logits(...))` of one given token a row, without sorting the vocabulary; -inf where the
    token is removed."""
    scaled = _scaled(logits, history, params, valid_vocab)
    log_prob = _by_tiers(_looked_up, scaled, params, tokens, _sizes(scaled))
    return jnp.where(params.greedy, jnp.where(tokens == first_largest(scaled), 0.0, -jnp.inf), log_prob)


def log_probs_at_1(logits: Float[Array, "B V"], tokens: Int[Array, " B"]) -> Float[Array, " B"]:
    """What the model itself gives these tokens: `log_softmax(logits)`, without penalties, temperature and cuts."""
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]
    largest = jnp.max(logits, axis=1)
    return (chosen - largest) - jnp.log(jnp.exp(logits - largest[:, None]).sum(axis=1))


def first_largest(x: Float[Array, "B V"]) -> Int[Array, " B"]:
    """`argmax(x, -1)`, int32, the first among equals, in one pass (XLA:CPU's own argmax takes ten times as long)."""
    blocks = _blocks(x)
    peaks = blocks.max(-1)
    block = _first(peaks == peaks.max(-1, keepdims=True))
    inside = jax.vmap(lambda row, at: row[at])(blocks, block)
    return block * BLOCK + _first(inside == inside.max(-1, keepdims=True))


def best_logits(x: Float[Array, "B V"], size: int) -> tuple[Float[Array, "B C"], Int[Array, "B C"]]:
    """The `size` largest values of each row and their tokens, largest first, the higher token first among equals.

    Top-p keeps tokens in this order, as transformers does where torch.sort is stable (on CPUs with AVX2 or AVX512 torch
    2.13 orders equal logits at random: which of them are kept at the edge differs, how many does not).
    """
    batch, vocab = x.shape
    if size == vocab:
        tokens = lax.broadcasted_iota(jnp.int32, x.shape, 1)
        values, tokens = lax.sort((x, tokens), dimension=1, is_stable=True, num_keys=1)
        return jnp.flip(values, 1), jnp.flip(tokens, 1)
    if size * BLOCK >= vocab:
        values, at = _top_k(jnp.flip(x, 1), size)
        return values, vocab - 1 - at
    blocks = _blocks(x)
    _, at = _top_k(jnp.flip(blocks.max(-1), 1), size)
    chosen = blocks.shape[1] - 1 - jnp.sort(at, 1)  # highest block first
    inside = jax.vmap(lambda row, at: row[at])(blocks, chosen)
    values, at = _top_k(jnp.flip(inside, 2).reshape(batch, size * BLOCK), size)
    return values, jnp.take_along_axis(chosen, at // BLOCK, 1) * BLOCK + (BLOCK - 1 - at % BLOCK)


class _Cut(NamedTuple):
    """A tier after top-k, top-p and min-p. Each of them removes from the end, so `kept` is True up to some place."""

    kept: Bool[Array, "B C"]
    sums: Float[Array, "B C"]  # probability (after top-k) of each token and all those after it
    behind: Float[Array, " B"]  # of which: tokens behind the tier
    known: Bool[Array, " B"]  # the tier shows which tokens are kept: either some of its own only, or all there are
    mass: Float[Array, " B"]  # sum of exp(x - largest x) over the tokens kept, where that is known


# What a tier says to a row's question: whether it knows, and the answer.
Reader = Callable[[Array, Array, Array, _Cut, Array], tuple[Array, Any]]


def _sizes(x: Array) -> list[int]:
    return [size for size in TIERS if size * TIER_GAIN < x.shape[1]] + [x.shape[1]]


def _by_tiers(read: Reader, x: Array, params: SamplingParams, asked: Array, sizes: list[int]) -> Any:
    """The answer of `read` with the tier of sizes[0] where that knows it, else row by row with the next ones."""
    values, tokens = best_logits(x, sizes[0])
    known, answer = read(x, values, tokens, _cut(values, x, params), asked)
    if len(sizes) == 1:
        return answer
    known |= params.greedy

    def next_tier(row: tuple) -> Any:
        known, answer, *one = row
        x, params, asked = jax.tree.map(lambda leaf: leaf[None], one)
        again = lambda: jax.tree.map(lambda leaf: leaf[0], _by_tiers(read, x, params, asked, sizes[1:]))  # noqa: E731
        return lax.cond(known, lambda: answer, again)

    rows = (known, answer, x, params, asked)
    return lax.cond(jnp.all(known), lambda: answer, lambda: lax.map(next_tier, rows))


def _drawn(_: Array, values: Array, tokens: Array, cut: _Cut, uniform: Array) -> tuple[Array, tuple[Array, Array]]:
    """The token at a uniform number, and its log-probability."""
    # The distribution function runs from the least probable token kept to the best one, so that rare ones lie near 0.
    removed = jnp.max(jnp.where(cut.kept, 0.0, cut.sums), 1)
    target = removed + uniform * (cut.sums[:, 0] - removed)
    at = jnp.maximum(jnp.sum(cut.kept & (cut.sums > target[:, None]), 1) - 1, 0)[:, None]
    token, value = (jnp.take_along_axis(of, at, 1)[:, 0] for of in (tokens, values))
    return cut.known & (target >= cut.behind), (token, value - values[:, 0] - jnp.log(cut.mass))


def _looked_up(x: Array, values: Array, tokens: Array, cut: _Cut, asked: Array) -> tuple[Array, Array]:
    """The log-probability of a given token. It is kept when it does not come after the last one that is."""
    last = jnp.sum(cut.kept, 1)[:, None] - 1
    last_value, last_token = (jnp.take_along_axis(of, last, 1)[:, 0] for of in (values, tokens))
    value = jnp.take_along_axis(x, asked[:, None], 1)[:, 0]
    kept = (value > last_value) | ((value == last_value) & (asked >= last_token)) | cut.kept[:, -1]
    return cut.known, jnp.where(kept, value - values[:, 0] - jnp.log(cut.mass), -jnp.inf)


def _cut(values: Float[Array, "B C"], x: Float[Array, "B V"], params: SamplingParams) -> _Cut:
    """Top-k, top-p and min-p on the best C logits (`values`, as `best_logits` orders them) of the scaled logits `x`."""
    size, vocab = values.shape[1], x.shape[1]
    exps = jnp.exp(values - values[:, :1])
    first = jnp.arange(size)[None, :] == 0

    kth = jnp.take_along_axis(values, jnp.clip(params.top_k[:, None] - 1, 0, size - 1), 1)[:, 0]
    top_k = (params.top_k > 0) & (params.top_k < vocab)
    limited = top_k & (params.top_k <= size) & ((kth > values[:, -1]) | (size == vocab))
    kept = ~limited[:, None] | (values >= kth[:, None])

    weights = jnp.where(kept, exps, 0.0)
    inside = weights.sum(1)
    total = inside if size == vocab else jnp.where(limited, inside, _total(x, values[:, 0], limited | params.greedy))
    behind = jnp.maximum(total - inside, 0.0) / total
    sums = behind[:, None] + _sums_from_the_end(_divide(weights, total))

    kept &= (sums > _complement(params.top_p)[:, None]) | (params.top_p >= 1.0)[:, None] | first
    kept &= (exps >= params.min_p[:, None]) | first
    nothing_cut = (params.top_p >= 1.0) & (params.min_p <= 0.0)
    known = limited | (~top_k & (nothing_cut | ~kept[:, -1])) | (size == vocab)
    mass = jnp.where(kept[:, -1], total, jnp.where(kept, exps, 0.0).sum(1))
    return _Cut(kept, sums, behind, known, mass)


def _scaled(logits: Array, history: History, params: SamplingParams, valid_vocab: int) -> Array:
    """float32[B, V]: logits after penalties and temperature, `-inf` where the vocabulary is padding, and with no -0.0
    (top_k would tell it from 0.0)."""
    if valid_vocab < logits.shape[1]:
        logits = jnp.where(jnp.arange(logits.shape[1])[None, :] < valid_vocab, logits, -jnp.inf)
    x = _divide(penalize(logits, history, params), jnp.where(params.greedy, 1.0, params.temperature))
    return jnp.where(x == 0.0, 0.0, x)


def _uniform(keys: Array) -> Array:
    """float32[B] in [0, 1) of 32 bits, fine-grained near 0."""
    bits = jax.vmap(lambda key: jax.random.bits(key, (), jnp.uint32))(keys)
    return jnp.minimum(bits.astype(jnp.float32) * 2.0**-32, 1.0 - 2.0**-24)


def _complement(top_p: Array) -> Array:
    """`1 - top_p` rounded once, as if top_p had stayed decimal: 0.8 gives 0.2, not 0.19999999 (ties would show it)."""
    millionths = jnp.round(top_p * 1e6)
    million = jnp.full_like(top_p, 1e6)
    return jnp.where(millionths / million == top_p, (million - millionths) / million, 1.0 - top_p)


def _sums_from_the_end(p: Float[Array, "B C"]) -> Float[Array, "B C"]:
    """Each probability plus all those after it, right to about the last bit (transformers adds in float64).

    Each is split into a multiple of 2^-30, which integers add without error, and a rest of at most 2^-31.
    """
    whole = jnp.round(p * 2.0**30).astype(jnp.int32)
    rest = p - whole.astype(jnp.float32) * 2.0**-30
    whole, rest = lax.cumsum(whole, 1, reverse=True), lax.cumsum(rest, 1, reverse=True)
    low = (whole & 0xFFFF).astype(jnp.float32) * 2.0**-30 + rest
    return (whole >> 16).astype(jnp.float32) * 2.0**-14 + low


def _total(x: Array, largest: Array, unneeded: Array) -> Array:
    """float32[B]: sum of exp(x - largest) over the vocabulary, if any row needs it."""
    return lax.cond(jnp.all(unneeded), lambda: jnp.ones_like(largest), lambda: jnp.exp(x - largest[:, None]).sum(1))


def _blocks(x: Array) -> Array:
    """[B, V] -> [B, ceil(V / BLOCK), BLOCK], the last block filled up with -inf."""
    batch, vocab = x.shape
    fill = -vocab % BLOCK
    return jnp.pad(x, ((0, 0), (0, fill)), constant_values=-jnp.inf).reshape(batch, (vocab + fill) // BLOCK, BLOCK)


def _top_k(x: Array, size: int) -> tuple[Array, Array]:
    """`lax.top_k` (the lower index first among equals), kept apart from its users: XLA:CPU sorts all of x otherwise.

    Not on GPU: XLA's CUDA compiler aborts the process at a barrier behind a top_k that it takes apart.
    """
    values, at = lax.top_k(x, size)
    if target_platform() != "gpu":
        values, at = lax.optimization_barrier((values, at))
    return values, at


def _divide(x: Float[Array, "B N"], by: Float[Array, " B"]) -> Float[Array, "B N"]:
    """`x / by` row by row, rounded once: XLA multiplies by the reciprocal of a divisor that is a plain broadcast."""
    return x / jnp.where(jnp.isnan(x), 1.0, by[:, None])


def _first(found: Bool[Array, "B N"]) -> Int[Array, " B"]:
    """int32[B]: index of the first True, the last index where there is none."""
    index = lax.broadcasted_iota(jnp.int32, found.shape, 1)
    return jnp.min(jnp.where(found, index, found.shape[1] - 1), 1)
