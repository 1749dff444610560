"""The engine under `generate`, rollouts and a server: prompts become rows, rows step together and end on their own.

    prefix, first = engine.prefill(rows)            # a state of its own: feeds the prompts, chooses their first tokens
    state = engine.empty(prefix, num_slots)         # slots for rows that come and go
    state = engine.insert(state, slots, prefix)     # into any free slots
    state, out = engine.step(state, k)              # up to k tokens for every row, none for those that are done

A batch that begins together needs no slots: `step` takes the prefix itself. Its rows then write one slot of the cache
together, which is the fastest form (`KVCache.lock_step`); rows in slots have a length each.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from qwen3_jax.infer.automaton import UNLIMITED, Tokens, initial
from qwen3_jax.infer.decode import (
    WIDE,
    DecodeState,
    RowStates,
    StepOutput,
    decode,
    empty_rows,
    finish_rows,
    first_token,
    insert,
    prefill,
)
from qwen3_jax.infer.rows import Row, plain_row
from qwen3_jax.infer.sampling_params import NOWHERE, sampling_params
from qwen3_jax.network.buckets import CACHE_QUANTUM, PREFILL_CHUNK, prompt_bucket, round_up
from qwen3_jax.network.cache import KVCache, grow_cache, init_cache
from qwen3_jax.network.model import Qwen3
from qwen3_jax.parameters.specs import Params, layout_of
from qwen3_jax.sharding import axes_of, mesh_size, named_sharding, put, replicate
from qwen3_jax.text.tokenizer import Tokenizer

_HEADROOM = 128  # slots for new tokens that a new cache has at least
CLOSING_BUCKET = 32  # the stop-thinking text is padded to a multiple of this
ENDS_BUCKET = 8  # and the end tokens to a multiple of this
_ANSWERS = 2**32 - 1  # folded into a key for further answers, counted down: no step gets there


@dataclasses.dataclass(frozen=True)
class Engine:
    """A model ready to answer. Its calls run under the mesh of its parameters (`sharding.under_mesh`).

    Attributes:
      think, end_think: ids of the tags, -1 where the vocabulary lacks them.
      pad: the token of prompts' padding.
      valid_vocab: ids from here on pad the embedding.
      closing_size, ends_size: room for the stop-thinking text and the end tokens of every row to come.
    """

    model: Qwen3
    params: Params
    mesh: Mesh | None
    think: int
    end_think: int
    pad: int
    valid_vocab: int
    closing_size: int = CLOSING_BUCKET
    ends_size: int = ENDS_BUCKET

    @classmethod
    def of(cls, model: Qwen3, params: Params, tok: Tokenizer, rows: Sequence[Row], mesh: Mesh | None) -> "Engine":
        """An engine with room for these rows."""
        pads = (model.generation.pad_token_id, tok.pad_token_id, 0)
        return cls(
            model,
            params,
            mesh,
            think=NOWHERE if tok.think_id is None else tok.think_id,
            end_think=NOWHERE if tok.end_think_id is None else tok.end_think_id,
            pad=next(token for token in pads if token is not None),
            valid_vocab=min(tok.vocab_size, model.config.vocab_size),  # a model may be smaller than its tokenizer
            closing_size=round_up(max(len(row.closing) for row in rows), CLOSING_BUCKET),
            ends_size=round_up(max(1, *(len(row.ends) for row in rows)), ENDS_BUCKET),
        )

    @property
    def multiple(self) -> int:
        """Batches are multiples of this many rows, so that they divide over the devices that share them."""
        return mesh_size(axes_of("batch", self.model.placement.rules))

    def prefill(self, rows: Sequence[Row], batch: int) -> tuple[DecodeState, StepOutput]:
        """Feeds the prompts, padded on the left to one bucket, and chooses their first tokens.

        Args:
          batch: rows of the state; those that are not asked for end after one token.

        Returns:
          the state, in lock-step, and the output of one step.
        """
        filler = dataclasses.replace(rows[0], max_new_tokens=1, budget=UNLIMITED)
        rows = [*rows, *[filler] * (batch - len(rows))]
        # Before the prompt is fed: anything computed op by op after it would wait for it, while the next program can
        # be traced and loaded meanwhile.
        fields = self._start(rows)
        bucket = prompt_bucket(max(len(row.tokens) for row in rows))
        tokens = np.full((batch, bucket), self.pad, np.int32)
        real = np.zeros((batch, bucket), bool)
        for index, row in enumerate(rows):
            tokens[index, bucket - len(row.tokens) :] = row.tokens
            real[index, bucket - len(row.tokens) :] = True
        cache = self._empty_cache(batch, round_up(bucket + _HEADROOM, CACHE_QUANTUM), lock_step=True)
        chunk = min(bucket, PREFILL_CHUNK)  # long prompts in chunks, so that few shapes are compiled
        for begin in range(0, bucket, chunk):
            part = slice(begin, begin + chunk)
            fed = replicate((tokens[:, part], real[:, part]), self.mesh)
            logits, cache = prefill(self.model, self.params, cache, *fed)
        state = DecodeState(cache=cache, **fields)
        return first_token(state, logits, self.valid_vocab, self.model.placement)

    def empty(self, prefix: DecodeState, num_slots: int) -> DecodeState:
        """A state of `num_slots` free slots, for rows of the kind of `prefix`."""
        rows = empty_rows(prefix.rows, num_slots, self.model.placement)
        cache = self._empty_cache(num_slots, prefix.cache.capacity, lock_step=False)
        return DecodeState(cache=cache, rows=rows, tokens=prefix.tokens)

    def insert(self, state: DecodeState, slots: Sequence[int], prefix: DecodeState) -> DecodeState:
        """Puts the first rows of `prefix` into these slots, whatever they held; the cache grows if it has to."""
        state = self.grow(state, prefix.cache.capacity)
        outside = state.rows.token.shape[0]  # drops a filler
        rows = [*slots, *[outside] * (prefix.rows.token.shape[0] - len(slots))]
        return insert(state, replicate(np.array(rows, np.int32), self.mesh), prefix)

    def step(self, state: DecodeState, num_steps: int) -> tuple[DecodeState, StepOutput]:
        """Up to `num_steps` tokens for every row; see `decode`. The cache must have room: see `grow`."""
        return decode(self.model, self.params, state, self.valid_vocab, num_steps)

    def grow(self, state: DecodeState, capacity: int) -> DecodeState:
        """The state with room for `capacity` tokens a row, its own and those of its prompt's padding."""
        if capacity <= state.cache.capacity:
            return state
        return dataclasses.replace(state, cache=grow_cache(state.cache, capacity))

    def finish(self, state: DecodeState, rows: Sequence[int]) -> DecodeState:
        """Ends these rows: a stop string was found in their text, or nobody waits for them."""
        ended = np.zeros(state.rows.token.shape[0], bool)
        ended[list(rows)] = True
        return finish_rows(state, replicate(ended, self.mesh))

    def _empty_cache(self, batch: int, capacity: int, lock_step: bool) -> Any:
        dtype, layout = self.model.activation_dtype(self.params), layout_of(self.params)
        return init_cache(self.model.config, batch, capacity, layout, dtype, self.model.placement, lock_step)

    def _start(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The first state but for its cache, where it lies on the mesh."""
        made = row_states(rows, self.model.config.vocab_size, self.closing_size, self.ends_size)
        by_row = None
        if self.mesh is not None:
            by_row = named_sharding(self.mesh, ("batch", None), self.model.placement.rules)
        tokens = Tokens(*(jnp.int32(token) for token in (self.think, self.end_think, self.pad)))
        wide: Any = {name: put(getattr(made, name), by_row) for name in WIDE}
        small: Any = {name: value for name, value in vars(made).items() if name not in WIDE}
        small, tokens = replicate((small, tokens), self.mesh)
        return {"rows": RowStates(**small, **wide), "tokens": tokens}


def row_states(rows: Sequence[Row], vocab_size: int, closing_size: int, ends_size: int) -> RowStates:
    """The rows before their first token; on the host what has an entry a token of the vocabulary."""
    closing = np.zeros((len(rows), closing_size), np.int32)
    ends = np.full((len(rows), ends_size), NOWHERE, np.int32)
    prompt = np.zeros((len(rows), vocab_size), bool)
    for index, row in enumerate(rows):
        closing[index, : len(row.closing)] = row.closing
        ends[index, : len(row.ends)] = row.ends
        prompt[index, row.tokens] = True

    def per_row(values: list, dtype: Any = np.int32) -> Array:
        return jnp.asarray(np.array(values, dtype))

    automaton = initial(
        open_block=per_row([row.open_block for row in rows], bool),
        budget=per_row([row.budget for row in rows]),
        max_new_tokens=per_row([row.max_new_tokens for row in rows]),
        closing=jnp.asarray(closing),
        closing_length=per_row([len(row.closing) for row in rows]),
        closing_content=per_row([row.closing_content for row in rows]),
        ends=jnp.asarray(ends),
    )
    wide: Any = {"counts": np.zeros((len(rows), vocab_size), np.int32), "prompt": prompt}
    return RowStates(
        token=per_row([row.tokens[-1] for row in rows]),
        automaton=automaton,
        keys=jnp.stack([_row_key(row) for row in rows]),
        sampling=sampling_params([vars(row.config) for row in rows]),
        **wide,
    )


def plain_state(cache: KVCache | None, batch: int, vocab_size: int, **settings: Any) -> DecodeState:
    """Rows on one device that never end, with a cache that is filled already: for plans and benchmarks.

    Args:
      cache: None leaves it out.
      settings: how they are sampled, greedily by default.
    """
    rows = row_states([plain_row([0], UNLIMITED, **settings)] * batch, vocab_size, CLOSING_BUCKET, ENDS_BUCKET)
    tokens = Tokens(think=jnp.int32(NOWHERE), end_think=jnp.int32(NOWHERE), pad=jnp.int32(0))
    return DecodeState(cache=cache, rows=rows, tokens=tokens)  # type: ignore[arg-type]


def _row_key(row: Row) -> Array:
    key = jax.random.key(np.uint32(row.config.seed))
    key = key if row.fold is None else jax.random.fold_in(key, row.fold)
    return jax.random.fold_in(key, np.uint32(_ANSWERS - row.answer)) if row.answer else key
