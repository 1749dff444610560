"""`generate` and `stream`: from inputs to answers, on whatever device JAX has."""

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from qwen3_jax.infer.automaton import END, IN_CONTENT, IN_THINKING, NOTHING, UNLIMITED, Tokens, initial
from qwen3_jax.infer.config import GenerationConfig
from qwen3_jax.infer.decode import DecodeState, decode, finish_rows, first_token, prefill
from qwen3_jax.infer.results import Piece, Result
from qwen3_jax.infer.rows import Row, prepare
from qwen3_jax.infer.sampling import SamplingParams
from qwen3_jax.infer.text import RowText
from qwen3_jax.network.cache import KVCache, grow_cache, init_cache
from qwen3_jax.network.model import Qwen3
from qwen3_jax.parameters.specs import Params, layout_of
from qwen3_jax.sharding import axes_of, mesh_of, mesh_size, named_sharding, put, replicate, under_mesh
from qwen3_jax.text.tokenizer import Tokenizer

_SMALLEST_BUCKET = 16
_PREFILL_CHUNK = 512  # longer prompts are fed in pieces of this many tokens
_CACHE_QUANTUM = 256  # cache capacities are multiples of this
_HEADROOM = 128  # slots for new tokens that a new cache has at least
_CLOSING_BUCKET = 32  # the stop-thinking text is padded to a multiple of this
STEPS = 32  # tokens of one call of `decode` on accelerators


def generate(
    model: Qwen3,
    params: Params,
    tok: Tokenizer,
    inputs: Sequence[Any],
    config: GenerationConfig | Sequence[GenerationConfig] | None = None,
    tools: Sequence[dict[str, Any]] | None = None,
) -> list[Result]:
    """Answers all inputs as one batch.

    Args:
      inputs: a string is raw text and is continued as it stands; a list of messages goes through the chat template.
      config: one for all (row i then samples with fold_in(seed, i)), or one for each input (seeds as given).
      tools: function descriptions for the template.

    Returns:
      one result an input, in order.

    Raises:
      ValueError: an input or a setting that can not work (one line naming the input).
    """
    results: list[Result | None] = [None] * len(inputs)
    for piece in stream(model, params, tok, inputs, config, tools):
        if piece.result is not None:
            results[piece.index] = piece.result
    return [result for result in results if result is not None]


def stream(
    model: Qwen3,
    params: Params,
    tok: Tokenizer,
    inputs: Sequence[Any],
    config: GenerationConfig | Sequence[GenerationConfig] | None = None,
    tools: Sequence[dict[str, Any]] | None = None,
) -> Iterator[Piece]:
    """The same answers in pieces, as they are made; the last piece of an input carries its result.

    Inputs are checked before this returns; see `generate` for arguments and errors.
    """
    mesh = mesh_of(params)
    return under_mesh(mesh, _run(model, params, tok, prepare(model, tok, inputs, config, tools), mesh))


def _run(model: Qwen3, params: Params, tok: Tokenizer, rows: list[Row], mesh: Mesh | None) -> Iterator[Piece]:
    # Ids from here on pad the embedding; a model smaller than its tokenizer has none.
    valid_vocab = min(tok.vocab_size, model.config.vocab_size)
    bucket = prompt_bucket(max(len(row.tokens) for row in rows))
    filled = rows + _fillers(rows, mesh_size(axes_of("batch", model.placement.rules)))
    # Before the prompt is fed: anything computed op by op after it would wait for it, while the next program can be
    # traced and loaded meanwhile.
    start = _start(model, tok, filled, mesh)
    logits, cache = _prefill_rows(model, params, filled, bucket, _pad_id(model, tok), mesh)
    state = DecodeState(cache=cache, **start)
    state, tokens, parts = first_token(state, logits, valid_vocab, model.placement)
    texts = [RowText(tok, tuple(row.config.stop or ()), chat=row.chat, block=row.block) for row in rows]
    open_rows = set(range(len(rows)))
    calls, steps, ahead = _rhythm(next(iter(state.token.devices())).platform)
    used, most = bucket, round_up(bucket + max(row.max_new_tokens for row in rows), _CACHE_QUANTUM)

    def dispatch() -> list[tuple[Array, Array]]:
        """The next calls, which do not wait for one another. The cache grows as needed, never past `most`."""
        nonlocal state, used
        used += calls * steps
        if used > state.cache.capacity < most:
            grown = grow_cache(state.cache, min(round_up(2 * state.cache.capacity, _CACHE_QUANTUM), most))
            state = dataclasses.replace(state, cache=grown)
        made = []
        for _ in range(calls):
            state, tokens, parts = decode(model, params, state, valid_vocab, steps)
            made.append((tokens, parts))
        return made

    made = [(tokens, parts)]
    while True:
        following = dispatch() if ahead else None
        yield from _emit(made, texts, open_rows, rows)
        if not open_rows:
            return
        stopped = np.array([text.stopped for text in texts] + [False] * (len(filled) - len(rows)))
        if stopped.any():
            state = finish_rows(state, replicate(stopped, mesh))
        made = following or dispatch()


def _rhythm(platform: str) -> tuple[int, int, bool]:
    """Calls dispatched together, steps of a call, and whether the next call is dispatched before the last one's tokens
    are read: an accelerator does not wait for text. A CPU makes the text itself, and would run steps in vain."""
    return (8, 1, False) if platform == "cpu" else (1, STEPS, True)


def _emit(
    made: list[tuple[Array, Array]], texts: list[RowText], open_rows: set[int], rows: list[Row]
) -> Iterator[Piece]:
    """Text of the new tokens, row by row, and the result of every row that has ended."""
    tokens = np.concatenate([np.asarray(t) for t, _ in made]).T.tolist()
    parts = np.concatenate([np.asarray(p) for _, p in made]).T.tolist()
    for index in sorted(open_rows):
        text = texts[index]
        for part in text.push(tokens[index], parts[index], _sampled(text, rows[index].budget, parts[index])):
            yield Piece(index=index, **part._asdict())
        hit_end = END in parts[index]
        if not (hit_end or text.stopped or text.num_tokens >= rows[index].max_new_tokens):
            continue
        open_rows.discard(index)
        for part in text.flush():
            yield Piece(index=index, **part._asdict())
        yield Piece(index=index, result=text.result(hit_end=hit_end, prompt_tokens=len(rows[index].tokens)))


def _sampled(text: RowText, budget: int, parts: list[int]) -> list[bool]:
    """Whether each token was sampled: in the block, what comes after `budget` sampled ones is fed."""
    thought, sampled = text.thinking_tokens, []
    for part in parts:
        sampled.append(part in (IN_CONTENT, END, NOTHING) or thought < budget)
        thought += sampled[-1] and part == IN_THINKING
    return sampled


def _fillers(rows: list[Row], ways: int) -> list[Row]:
    """Rows that end after one token, so that the batch divides over the devices that share it."""
    filler = dataclasses.replace(rows[0], max_new_tokens=1, budget=UNLIMITED)
    return [filler] * (-len(rows) % ways)


def _prefill_rows(
    model: Qwen3, params: Params, rows: list[Row], bucket: int, pad: int, mesh: Mesh | None
) -> tuple[Array, KVCache]:
    """Feeds all prompts, padded on the left to `bucket`; long ones in chunks, so that few shapes are compiled."""
    tokens = np.full((len(rows), bucket), pad, np.int32)
    real = np.zeros((len(rows), bucket), bool)
    for index, row in enumerate(rows):
        tokens[index, bucket - len(row.tokens) :] = row.tokens
        real[index, bucket - len(row.tokens) :] = True
    capacity = round_up(bucket + _HEADROOM, _CACHE_QUANTUM)
    dtype = model.activation_dtype(params)
    cache = init_cache(model.config, len(rows), capacity, layout_of(params), dtype, model.placement)
    chunk = min(bucket, _PREFILL_CHUNK)
    for begin in range(0, bucket, chunk):
        part = slice(begin, begin + chunk)
        fed = replicate((tokens[:, part], real[:, part]), mesh)
        logits, cache = prefill(model, params, cache, *fed)
    return logits, cache


def _start(model: Qwen3, tok: Tokenizer, rows: list[Row], mesh: Mesh | None) -> dict[str, Any]:
    """The fields of the first state, all but the cache."""
    closing = np.zeros((len(rows), round_up(max(len(row.closing) for row in rows), _CLOSING_BUCKET)), np.int32)
    for index, row in enumerate(rows):
        closing[index, : len(row.closing)] = row.closing

    def per_row(values: list, dtype: Any) -> Array:
        return jnp.asarray(np.array(values, dtype))

    automaton = initial(
        open_block=per_row([row.open_block for row in rows], bool),
        budget=per_row([row.budget for row in rows], np.int32),
        max_new_tokens=per_row([row.max_new_tokens for row in rows], np.int32),
        closing=jnp.asarray(closing),
        closing_length=per_row([len(row.closing) for row in rows], np.int32),
    )
    sampling = {
        name: per_row([getattr(row.config, name) for row in rows], np.int32 if name == "top_k" else np.float32)
        for name in ("temperature", "top_k", "top_p", "min_p", "presence_penalty")
    }
    tokens = Tokens(
        think=jnp.int32(-1 if tok.think_id is None else tok.think_id),
        end_think=jnp.int32(-1 if tok.end_think_id is None else tok.end_think_id),
        ends=jnp.asarray(np.array(end_tokens(model, tok), np.int32)),
        pad=jnp.int32(_pad_id(model, tok)),
    )
    seen = np.zeros((len(rows), model.config.vocab_size), bool)
    by_row = None if mesh is None else named_sharding(mesh, ("batch", None), model.placement.rules)
    return {
        "token": replicate(per_row([row.tokens[-1] for row in rows], np.int32), mesh),
        "automaton": replicate(automaton, mesh),
        "seen": put(seen, by_row),
        "keys": replicate(jnp.stack([_row_key(row) for row in rows]), mesh),
        "sampling": replicate(SamplingParams(**sampling), mesh),
        "tokens": replicate(tokens, mesh),
    }


def _row_key(row: Row) -> Array:
    key = jax.random.key(np.uint32(row.config.seed))
    return key if row.fold is None else jax.random.fold_in(key, row.fold)


def end_tokens(model: Qwen3, tok: Tokenizer) -> tuple[int, ...]:
    """Tokens that end an answer: the checkpoint's, else the tokenizer's own and Qwen's two."""
    ends = model.generation.eos_token_ids
    if not ends:
        known = (tok.eos_token_id, tok.token_to_id("<|im_end|>"), tok.token_to_id("<|endoftext|>"))
        ends = tuple(dict.fromkeys(token for token in known if token is not None))
    if not ends:
        warnings.warn(
            "no end token: the checkpoint and its tokenizer name none, answers run to their length", stacklevel=2
        )
        ends = (-1,)
    return ends


def _pad_id(model: Qwen3, tok: Tokenizer) -> int:
    known = (model.generation.pad_token_id, tok.pad_token_id)
    return next((token for token in known if token is not None), 0)


def prompt_bucket(length: int) -> int:
    """Length a prompt is padded to: a power of two up to the prefill chunk, then a multiple of it.

    In: 5, 16, 17, 512, 513      Out: 16, 16, 32, 512, 1024
    """
    if length > _PREFILL_CHUNK:
        return round_up(length, _PREFILL_CHUNK)
    bucket = _SMALLEST_BUCKET
    while bucket < length:
        bucket *= 2
    return bucket


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
