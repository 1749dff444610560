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
from qwen3_jax.infer.sampling import SamplingParams, sample
from qwen3_jax.network.cache import KVCache
from qwen3_jax.network.model import Qwen3
from qwen3_jax.parameters.placement import ONE_DEVICE, Placement
from qwen3_jax.parameters.specs import Params
from qwen3_jax.sharding import axes_of, current_mesh

# Number of times each function was traced: what tests assert "nothing recompiles" with.
TRACES: collections.Counter[str] = collections.Counter()


@flax.struct.dataclass
class DecodeState:
    """A batch of B answers in the making; donated to each step and returned by it.

    Attributes:
      cache: keys and values of the prompt and of every token but the last.
      token: int32[B], the last token, which the next step feeds.
      automaton: phase, counts and budget of each row.
      seen: bool[B, V], tokens already generated, for the presence penalty.
      keys: PRNG key of each row; step t samples with fold_in(key, t), whatever the neighbours do.
      sampling: temperature, top_k, ... of each row.
      tokens: ids of the think tags, the end tokens and padding.
    """

    __no_type_check__ = True  # while JAX lowers or maps a pytree, its fields are not arrays

    cache: KVCache
    token: Int[Array, " B"]
    automaton: Automaton
    seen: Bool[Array, "B V"]
    keys: Array
    sampling: SamplingParams
    tokens: Tokens


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
) -> tuple[DecodeState, Int[Array, "1 B"], Int[Array, "1 B"]]:
    """Chooses the token after the prompt; returns what `decode` does, for one step."""
    TRACES["first_token"] += 1
    state, token, part = _choose(state, logits, valid_vocab, placement)
    return state, token[None], part[None]


@partial(jax.jit, static_argnames=("model", "valid_vocab", "num_steps"), donate_argnames=("state",))
def decode(
    model: Qwen3, params: Params, state: DecodeState, valid_vocab: int, num_steps: int
) -> tuple[DecodeState, Int[Array, "k B"], Int[Array, "k B"]]:
    """Up to `num_steps` tokens for every row; fewer when all rows are done.

    Args:
      valid_vocab: ids from here on are padding of the embedding and never sampled.
      num_steps: k. One step is a straight program: on CPU a bfloat16 product inside `while_loop` falls to a sixth of
        its speed, so there the caller asks for one step at a time.

    Returns:
      the state, tokens int32[k, B], and what each is part of (`infer.automaton`), NOTHING where a row was done.
    """
    TRACES["decode"] += 1

    def step(state: DecodeState) -> tuple[DecodeState, Array, Array]:
        out = model.apply({"params": params}, state.token[:, None], cache=state.cache, logits_to_keep=1)
        state = dataclasses.replace(state, cache=out.cache)
        return _choose(state, out.logits[:, 0], valid_vocab, model.placement)

    if num_steps == 1:
        state, token, part = step(state)
        return state, token[None], part[None]

    def running(carry: tuple[Array, DecodeState, Array, Array]) -> Array:
        return (carry[0] < num_steps) & jnp.any(carry[1].automaton.phase != DONE)

    def body(carry: tuple[Array, DecodeState, Array, Array]) -> tuple[Array, DecodeState, Array, Array]:
        i, state, tokens, parts = carry
        state, token, part = step(state)
        return i + 1, state, tokens.at[i].set(token), parts.at[i].set(part)

    shape = (num_steps, state.token.shape[0])
    start = (jnp.int32(0), state, jnp.full(shape, state.tokens.pad), jnp.full(shape, NOTHING, jnp.int32))
    _, state, tokens, parts = jax.lax.while_loop(running, body, start)
    return state, tokens, parts


@partial(jax.jit, donate_argnames=("state",))
def finish_rows(state: DecodeState, rows: Bool[Array, " B"]) -> DecodeState:
    """Ends rows from outside: a stop string was found in their text."""
    phase = jnp.where(rows, DONE, state.automaton.phase)
    automaton = dataclasses.replace(state.automaton, phase=phase, hit_end=state.automaton.hit_end | rows)
    return dataclasses.replace(state, automaton=automaton)


def _choose(
    state: DecodeState, logits: Float[Array, "B V"], valid_vocab: int, placement: Placement
) -> tuple[DecodeState, Int[Array, " B"], Int[Array, " B"]]:
    keys = jax.vmap(jax.random.fold_in)(state.keys, state.automaton.generated)
    sampled = _sample_rows(logits, state.seen, state.sampling, keys, valid_vocab, placement)
    was_done = state.automaton.phase == DONE
    automaton, token, part = advance(state.automaton, sampled, state.tokens)
    rows = jnp.arange(token.shape[0])
    seen = placement.constrain(state.seen.at[rows, token].max(~was_done), "batch", None)
    # A few numbers a row: every device has them all, and the host can read them from any.
    automaton, token, part = jax.tree.map(lambda x: placement.constrain(x, *(None,) * x.ndim), (automaton, token, part))
    return dataclasses.replace(state, automaton=automaton, token=token, seen=seen), token, part


def _sample_rows(
    logits: Float[Array, "B V"],
    seen: Bool[Array, "B V"],
    params: SamplingParams,
    keys: Array,
    valid_vocab: int,
    placement: Placement,
) -> Int[Array, " B"]:
    """`sample`, each device for its own rows: no row depends on another, and loops over rows stay local."""
    if current_mesh() is None:
        return sample(logits, seen, params, keys, valid_vocab)
    rows = PartitionSpec(axes_of("batch", placement.rules))
    local = jax.shard_map(partial(sample, valid_vocab=valid_vocab), in_specs=rows, out_specs=rows, check_vma=False)
    return local(logits, seen, params, keys)
