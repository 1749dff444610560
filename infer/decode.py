"""The decode loop: `state -> state` over one documented struct, compiled once a shape.

Everything a caller may change between two generations (budgets, sampling values, seeds, end tokens, the text fed at
the budget) is an array of the state, so one batch mixes modes and nothing recompiles.
"""

import collections
import dataclasses
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from qwen3_jax.infer.automaton import DONE, NOTHING, Automaton, Tokens, advance
from qwen3_jax.infer.penalties import History
from qwen3_jax.infer.sampling import log_probs_at_1, sample
from qwen3_jax.infer.sampling_params import SamplingParams
from qwen3_jax.network.cache import KVCache, insert_rows
from qwen3_jax.network.model import Qwen3
from qwen3_jax.parameters.placement import ONE_DEVICE, Placement
from qwen3_jax.parameters.specs import Params
from qwen3_jax.sharding import axes_of, current_mesh

# Number of times each function was traced: what tests assert "nothing recompiles" with.
TRACES: collections.Counter[str] = collections.Counter()

WIDE = ("counts", "prompt")  # fields of `RowStates` with an entry a token of the vocabulary


@flax.struct.dataclass
class RowStates:
    """What the B rows of a batch carry from step to step, besides the cache.

    Attributes:
      token: int32[B], the last token, which the next step feeds.
      automaton: phase, counts and budget of each row.
      counts: int32[B, V], how often each token was generated, for the penalties.
      prompt: bool[B, V], tokens of the prompt, for the repetition penalty.
      keys: PRNG key of each row; step t samples with fold_in(key, t), whatever the neighbours do.
      sampling: temperature, top_k, ... of each row.
    """

    __no_type_check__ = True  # while JAX lowers or maps a pytree, its fields are not arrays

    token: Int[Array, " B"]
    automaton: Automaton
    counts: Int[Array, "B V"]
    prompt: Bool[Array, "B V"]
    keys: Array
    sampling: SamplingParams


@flax.struct.dataclass
class DecodeState:
    """A batch of answers in the making; donated to each step and returned by it.

    Attributes:
      cache: keys and values of the prompt and of every token but the last.
      rows: everything else that rows have.
      tokens: ids of the think tags and of padding.
    """

    __no_type_check__ = True  # while JAX lowers or maps a pytree, its fields are not arrays

    cache: KVCache
    rows: RowStates
    tokens: Tokens


@flax.struct.dataclass
class StepOutput:
    """The tokens of k steps.

    Attributes:
      token: int32[k, B].
      part: int32[k, B], what it is part of (`infer.automaton`); NOTHING where a row was done.
      sampled: bool[k, B], whether it was sampled; else it was fed.
      log_prob: float32[k, B], what the model gives it at temperature 1; 0 unless some row asks for `log_probs`.
      sampling_log_prob: float32[k, B], what it was drawn with: 0 where it is certain (greedy, or fed).
    """

    __no_type_check__ = True  # while JAX lowers or maps a pytree, its fields are not arrays

    token: Int[Array, "k B"]
    part: Int[Array, "k B"]
    sampled: Bool[Array, "k B"]
    log_prob: Float[Array, "k B"]
    sampling_log_prob: Float[Array, "k B"]


@partial(jax.jit, static_argnames=("model",), donate_argnames=("cache",))
def prefill(
    model: Qwen3, params: Params, cache: KVCache, tokens: Int[Array, "B T"], real: Bool[Array, "B T"]
) -> tuple[Float[Array, "B V"], KVCache]:
    """Feeds T prompt tokens, padded on the left.

    Returns:
      float32[B, V] logits after the last token, and the cache.
    """
    TRACES["prefill"] += 1
    out = model.apply({"params": params}, tokens, attention_mask=real, cache=cache, logits_to_keep=1)
    return out.logits[:, 0], out.cache


@partial(jax.jit, static_argnames=("valid_vocab", "placement"), donate_argnames=("state",))
def first_token(
    state: DecodeState, logits: Float[Array, "B V"], valid_vocab: int, placement: Placement = ONE_DEVICE
) -> tuple[DecodeState, StepOutput]:
    """Chooses the token after the prompt; returns what `decode` does, for one step."""
    TRACES["first_token"] += 1
    state, out = _choose(state, logits, valid_vocab, placement)
    return state, jax.tree.map(lambda x: x[None], out)


@partial(jax.jit, static_argnames=("model", "valid_vocab", "num_steps"), donate_argnames=("state",))
def decode(
    model: Qwen3, params: Params, state: DecodeState, valid_vocab: int, num_steps: int
) -> tuple[DecodeState, StepOutput]:
    """Up to `num_steps` tokens for every row; fewer when all rows are done.

    Args:
      valid_vocab: ids from here on are padding of the embedding and never sampled.
      num_steps: k. One step is a straight program: on CPU a bfloat16 product inside `while_loop` falls to a sixth of
        its speed, so there the caller asks for one step at a time.
    """
    TRACES["decode"] += 1

    def step(state: DecodeState) -> tuple[DecodeState, StepOutput]:
        out = model.apply({"params": params}, state.rows.token[:, None], cache=state.cache, logits_to_keep=1)
        state = dataclasses.replace(state, cache=out.cache)
        return _choose(state, out.logits[:, 0], valid_vocab, model.placement)

    if num_steps == 1:
        state, made = step(state)
        return state, jax.tree.map(lambda x: x[None], made)

    def running(carry: tuple[Array, DecodeState, StepOutput]) -> Array:
        return (carry[0] < num_steps) & jnp.any(carry[1].rows.automaton.phase != DONE)

    def body(carry: tuple[Array, DecodeState, StepOutput]) -> tuple[Array, DecodeState, StepOutput]:
        i, state, made = carry
        state, out = step(state)
        return i + 1, state, jax.tree.map(lambda all_, one: all_.at[i].set(one), made, out)

    shape = (num_steps, state.rows.token.shape[0])
    nothing = StepOutput(
        token=jnp.full(shape, state.tokens.pad),
        part=jnp.full(shape, NOTHING, jnp.int32),
        sampled=jnp.zeros(shape, bool),
        log_prob=jnp.zeros(shape, jnp.float32),
        sampling_log_prob=jnp.zeros(shape, jnp.float32),
    )
    _, state, made = jax.lax.while_loop(running, body, (jnp.int32(0), state, nothing))
    return state, made


@partial(jax.jit, donate_argnames=("state",))
def insert(state: DecodeState, slots: Int[Array, " R"], prefix: DecodeState) -> DecodeState:
    """Puts the rows of `prefix`, which have their first token, into these slots of a state with a row-wise cache. A
    slot outside of the batch drops its row."""
    TRACES["insert"] += 1
    rows = jax.tree.map(lambda old, new: old.at[slots].set(new, mode="drop"), state.rows, prefix.rows)
    cache = insert_rows(state.cache, slots, prefix.cache)
    return dataclasses.replace(state, cache=cache, rows=_laid_out(rows, cache.placement))


@partial(jax.jit, static_argnames=("num_slots", "placement"))
def empty_rows(like: RowStates, num_slots: int, placement: Placement = ONE_DEVICE) -> RowStates:
    """`num_slots` rows that are done, with arrays of the shapes of `like`, for `insert`."""
    rows = jax.tree.map(lambda x: jnp.repeat(x[:1], num_slots, axis=0), like)
    phase = jnp.full((num_slots,), DONE, jnp.int32)
    automaton = dataclasses.replace(rows.automaton, phase=phase)
    return _laid_out(dataclasses.replace(rows, automaton=automaton), placement)


@partial(jax.jit, donate_argnames=("state",))
def finish_rows(state: DecodeState, ended: Bool[Array, " B"]) -> DecodeState:
    """Ends rows from outside: a stop string was found in their text."""
    phase = jnp.where(ended, DONE, state.rows.automaton.phase)
    automaton = dataclasses.replace(state.rows.automaton, phase=phase, hit_end=state.rows.automaton.hit_end | ended)
    return dataclasses.replace(state, rows=dataclasses.replace(state.rows, automaton=automaton))


def _laid_out(rows: RowStates, placement: Placement) -> RowStates:
    """On a mesh: what has an entry a token of the vocabulary is split by rows. The rest is a few numbers a row: every
    device has them all, and the host can read them from any."""

    def place(path: tuple, x: Array) -> Array:
        return placement.constrain(x, "batch" if path[0].name in WIDE else None, *(None,) * (x.ndim - 1))

    placed: RowStates = jax.tree_util.tree_map_with_path(place, rows)
    return placed


def _choose(
    state: DecodeState, logits: Float[Array, "B V"], valid_vocab: int, placement: Placement
) -> tuple[DecodeState, StepOutput]:
    """The next token of every row; each device does it for its own rows: no row depends on another, and loops over
    rows stay local."""
    choose = partial(_choose_rows, valid_vocab=valid_vocab)
    if current_mesh() is not None:
        by_row = PartitionSpec(axes_of("batch", placement.rules))
        specs = (by_row, by_row, PartitionSpec())
        choose = jax.shard_map(choose, in_specs=specs, out_specs=by_row, check_vma=False)
    rows, out = choose(logits, state.rows, state.tokens)
    out = jax.tree.map(lambda x: placement.constrain(x, None), out)
    return dataclasses.replace(state, rows=_laid_out(rows, placement)), out


def _choose_rows(
    logits: Float[Array, "B V"], rows: RowStates, tokens: Tokens, valid_vocab: int
) -> tuple[RowStates, StepOutput]:
    generated, sampling = rows.automaton.generated, rows.sampling
    keys = jax.vmap(jax.random.fold_in)(rows.keys, generated)
    history = History(counts=rows.counts, prompt=rows.prompt, generated=generated, ends=rows.automaton.ends)
    drawn, drawn_with = sample(logits, history, sampling, keys, valid_vocab)
    running = (rows.automaton.phase != DONE).astype(jnp.int32)
    automaton, step = advance(rows.automaton, drawn, tokens)
    log_prob = jax.lax.cond(
        jnp.any(sampling.log_probs),
        lambda: log_probs_at_1(logits, step.token),
        lambda: jnp.zeros(step.token.shape, jnp.float32),
    )
    counts = rows.counts.at[jnp.arange(running.shape[0]), step.token].add(running)
    out = StepOutput(
        token=step.token,
        part=step.part,
        sampled=step.sampled,
        log_prob=log_prob,
        sampling_log_prob=jnp.where(step.sampled, drawn_with, 0.0),
    )
    return dataclasses.replace(rows, automaton=automaton, token=step.token, counts=counts), out
