"""Which part of an answer a row is in, and the thinking budget: a state machine over arrays, one entry a row.

    ANSWERING --<think>--> THINKING --</think>--> ANSWERING --end token--> DONE
                              |                      ^
                              +--budget--> CLOSING --+      (the stop-thinking text is fed in place of samples)

The phase, not a search of the text, tells thinking from content: a `</think>` of an earlier turn stands in the prompt
and never passes through here. `<think>` may be sampled, or stand open in the prompt (the row then starts in THINKING).
A block that is opened again after its budget is used up is closed at once, so the budget bounds the whole answer.
"""

import dataclasses

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

THINKING, CLOSING, ANSWERING, DONE = 0, 1, 2, 3

# What a token of the output is part of.
IN_THINKING, TAG, IN_CONTENT, END, NOTHING = 0, 1, 2, 3, 4

UNLIMITED = 2**31 - 1


@flax.struct.dataclass
class Automaton:
    """State of every row.

    Attributes:
      phase: int32[B], one of THINKING, CLOSING, ANSWERING, DONE.
      thinking_tokens: int32[B], tokens sampled inside the block so far.
      budget: int32[B], the most of them; UNLIMITED for none.
      exhausted: bool[B], whether the budget has closed the block.
      generated: int32[B], tokens after the prompt so far, forced ones included.
      max_new_tokens: int32[B].
      closing: int32[B, M], the stop-thinking text of each row, padded.
      closing_length: int32[B], its length.
      closing_next: int32[B], how much of it has been fed.
      hit_end: bool[B], whether the row ended by an end token (or a stop string), not by its length.
    """

    __no_type_check__ = True  # while JAX lowers or maps a pytree, its fields are not arrays

    phase: Int[Array, " B"]
    thinking_tokens: Int[Array, " B"]
    budget: Int[Array, " B"]
    exhausted: Bool[Array, " B"]
    generated: Int[Array, " B"]
    max_new_tokens: Int[Array, " B"]
    closing: Int[Array, "B M"]
    closing_length: Int[Array, " B"]
    closing_next: Int[Array, " B"]
    hit_end: Bool[Array, " B"]


@flax.struct.dataclass
class Tokens:
    """The tokens the automaton reacts to; -1 (which no token has) where the vocabulary lacks the tag."""

    __no_type_check__ = True  # while JAX lowers or maps a pytree, its fields are not arrays

    think: Int[Array, ""]
    end_think: Int[Array, ""]
    ends: Int[Array, " E"]
    pad: Int[Array, ""]


def initial(
    open_block: Bool[Array, " B"],
    budget: Int[Array, " B"],
    max_new_tokens: Int[Array, " B"],
    closing: Int[Array, "B M"],
    closing_length: Int[Array, " B"],
) -> Automaton:
    """Rows before their first token; `open_block` says whose prompt ends inside a think block."""

    def zeros() -> Array:
        return jnp.zeros_like(budget)  # one buffer each: the state is donated

    phase = jnp.where(open_block, jnp.where(budget == 0, CLOSING, THINKING), ANSWERING).astype(jnp.int32)
    return Automaton(
        phase=phase,
        thinking_tokens=zeros(),
        budget=budget,
        exhausted=phase == CLOSING,
        generated=zeros(),
        max_new_tokens=max_new_tokens,
        closing=closing,
        closing_length=closing_length,
        closing_next=zeros(),
        hit_end=jnp.zeros_like(open_block),
    )


def advance(
    state: Automaton, sampled: Int[Array, " B"], tokens: Tokens
) -> tuple[Automaton, Int[Array, " B"], Int[Array, " B"]]:
    """One token for every row: the sampled one, or the next of the stop-thinking text, or padding when done.

    Returns:
      the next state, the token int32[B], and what it is part of (IN_THINKING, TAG, IN_CONTENT, END, NOTHING).
    """
    thinking, closing = state.phase == THINKING, state.phase == CLOSING
    answering, done = state.phase == ANSWERING, state.phase == DONE
    last = state.closing.shape[1] - 1
    forced = jnp.take_along_axis(state.closing, jnp.minimum(state.closing_next, last)[:, None], axis=1)[:, 0]
    token = jnp.where(done, tokens.pad, jnp.where(closing, forced, sampled))

    is_end = jnp.any(token[:, None] == tokens.ends[None, :], axis=1) & (thinking | answering)
    is_open = (token == tokens.think) & ~done
    is_close = (token == tokens.end_think) & ~done

    # Everything the model writes inside the block counts, but not the tag that closes it.
    thinking_tokens = state.thinking_tokens + (thinking & ~is_close & ~is_end).astype(jnp.int32)
    closing_next = jnp.where(closing, state.closing_next + 1, state.closing_next)
    closed = closing & (closing_next >= state.closing_length)
    generated = jnp.where(done, state.generated, state.generated + 1)

    inside = (thinking & ~is_close) | (answering & is_open)
    over_budget = inside & ~is_end & (thinking_tokens >= state.budget)
    phase = jnp.where(inside, jnp.where(over_budget, CLOSING, THINKING), state.phase)
    phase = jnp.where((thinking & is_close) | closed, ANSWERING, phase)
    phase = jnp.where(is_end | (generated >= state.max_new_tokens) | done, DONE, phase)

    part = jnp.where(thinking, IN_THINKING, IN_CONTENT)
    # The stop-thinking text is thinking up to its closing tag; what follows the tag is neither.
    before_tag = closing & ~_tag_was_fed(state, tokens)
    part = jnp.where(closing, jnp.where(before_tag, IN_THINKING, TAG), part)
    part = jnp.where((is_open & answering) | (is_close & (thinking | closing)), TAG, part)
    part = jnp.where(is_end, END, jnp.where(done, NOTHING, part)).astype(jnp.int32)
    state = dataclasses.replace(
        state,
        phase=phase,
        thinking_tokens=thinking_tokens,
        exhausted=state.exhausted | over_budget,
        generated=generated,
        closing_next=jnp.where(closed, 0, closing_next),
        hit_end=state.hit_end | is_end,
    )
    return state, token, part


def _tag_was_fed(state: Automaton, tokens: Tokens) -> Bool[Array, " B"]:
    index = jnp.arange(state.closing.shape[1])[None, :]
    return jnp.any((state.closing == tokens.end_think) & (index < state.closing_next[:, None]), axis=1)
