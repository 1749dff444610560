"""Which part of an answer a row is in, and the thinking budget: a state machine over arrays, one entry a row.

    ANSWERING --<think>--> THINKING --</think>--> ANSWERING --end token--> DONE
                              |                      ^
                              +--budget--> CLOSING --+      (the stop-thinking text is fed in place of samples)

The phase, not a search of the text, tells thinking from content: a `</think>` of an earlier turn stands in the prompt
and never passes through here. `<think>` may be sampled, or stand open in the prompt (the row then starts in THINKING).
A block that has used its budget takes one more sample: if that is `</think>`, the model has closed the block itself;
anything else is replaced by the first token of the stop-thinking text. So is a block that is opened again later: the
budget bounds the whole answer. With a budget of 0 the sample is not looked at.
"""

import dataclasses
from typing import NamedTuple

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
      closing_content: int32[B], from where on it is content; what stands between its `</think>` and this is neither
        thinking nor content.
      closing_next: int32[B], how much of it has been fed.
      ends: int32[B, E], tokens that end the row; -1 fills up.
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
    closing_content: Int[Array, " B"]
    closing_next: Int[Array, " B"]
    ends: Int[Array, "B E"]
    hit_end: Bool[Array, " B"]


@flax.struct.dataclass
class Tokens:
    """The tokens the automaton reacts to; -1 (which no token has) where the vocabulary lacks the tag."""

    __no_type_check__ = True  # while JAX lowers or maps a pytree, its fields are not arrays

    think: Int[Array, ""]
    end_think: Int[Array, ""]
    pad: Int[Array, ""]


class Step(NamedTuple):
    """What one step gives a row: a token, what it is part of (IN_THINKING, TAG, IN_CONTENT, END, NOTHING), and whether
    it is the sample (not fed). Nothing is sampled in a row that is done."""

    token: Int[Array, " B"]
    part: Int[Array, " B"]
    sampled: Bool[Array, " B"]


def initial(
    open_block: Bool[Array, " B"],
    budget: Int[Array, " B"],
    max_new_tokens: Int[Array, " B"],
    closing: Int[Array, "B M"],
    closing_length: Int[Array, " B"],
    closing_content: Int[Array, " B"],
    ends: Int[Array, "B E"],
) -> Automaton:
    """Rows before their first token; `open_block` says whose prompt ends inside a think block."""

    def zeros() -> Array:
        return jnp.zeros_like(budget)  # one buffer each: the state is donated

    return Automaton(
        phase=jnp.where(open_block, THINKING, ANSWERING).astype(jnp.int32),
        thinking_tokens=zeros(),
        budget=budget,
        exhausted=jnp.zeros_like(open_block),
        generated=zeros(),
        max_new_tokens=max_new_tokens,
        closing=closing,
        closing_length=closing_length,
        closing_content=closing_content,
        closing_next=zeros(),
        ends=ends,
        hit_end=jnp.zeros_like(open_block),
    )


def advance(state: Automaton, sample: Int[Array, " B"], tokens: Tokens) -> tuple[Automaton, Step]:
    """One token for every row: the sample, or the next of the stop-thinking text, or padding when done."""
    thinking, answering, done = (state.phase == phase for phase in (THINKING, ANSWERING, DONE))
    # The sample after the last one of the budget is paid for already: it may be the model's own closing tag.
    closes_itself = (sample == tokens.end_think) & (state.budget > 0)
    exhausted = thinking & (state.thinking_tokens >= state.budget) & ~closes_itself
    closing = (state.phase == CLOSING) | exhausted
    thinking &= ~exhausted
    last = state.closing.shape[1] - 1
    fed = jnp.take_along_axis(state.closing, jnp.minimum(state.closing_next, last)[:, None], axis=1)[:, 0]
    token = jnp.where(done, tokens.pad, jnp.where(closing, fed, sample))

    is_end = jnp.any(token[:, None] == state.ends, axis=1) & (thinking | answering)
    is_open = (token == tokens.think) & answering
    is_close = (token == tokens.end_think) & thinking
    # Everything the model writes inside the block counts, but not the tag that closes it.
    thinking_tokens = state.thinking_tokens + (thinking & ~is_close & ~is_end).astype(jnp.int32)
    closing_next = jnp.where(closing, state.closing_next + 1, state.closing_next)
    closed = closing & (closing_next >= state.closing_length)
    generated = jnp.where(done, state.generated, state.generated + 1)

    phase = jnp.where(is_open, THINKING, jnp.where(closing, CLOSING, state.phase))
    phase = jnp.where(is_close | closed, ANSWERING, phase)
    phase = jnp.where(is_end | (generated >= state.max_new_tokens) | done, DONE, phase)

    part = jnp.where(thinking, IN_THINKING, IN_CONTENT)
    part = jnp.where(closing, _part_of_fed(state, tokens), part)
    part = jnp.where(is_open | is_close, TAG, part)
    part = jnp.where(is_end, END, jnp.where(done, NOTHING, part)).astype(jnp.int32)
    state = dataclasses.replace(
        state,
        phase=phase,
        thinking_tokens=thinking_tokens,
        exhausted=state.exhausted | exhausted,
        generated=generated,
        closing_next=jnp.where(closed, 0, closing_next),
        hit_end=state.hit_end | is_end,
    )
    return state, Step(token, part, ~(closing | done))


def _part_of_fed(state: Automaton, tokens: Tokens) -> Int[Array, " B"]:
    """What the next token of the stop-thinking text is part of: thinking before its tag, content from
    `closing_content` on."""
    index, tag = jnp.arange(state.closing.shape[1])[None, :], state.closing == tokens.end_think
    tag_stands_ahead = ~jnp.any(tag & (index <= state.closing_next[:, None]), axis=1)
    after = jnp.where(state.closing_next >= state.closing_content, IN_CONTENT, TAG)
    return jnp.where(tag_stands_ahead, IN_THINKING, after)
