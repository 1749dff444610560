"""`generate` and `stream`: from inputs to answers, on whatever device JAX has."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from qwen3_jax.infer.automaton import END
from qwen3_jax.infer.config import GenerationConfig
from qwen3_jax.infer.engine import Engine
from qwen3_jax.infer.results import Piece, Result
from qwen3_jax.infer.rows import Row, prepare
from qwen3_jax.infer.schedule import Made, Schedule
from qwen3_jax.infer.text import RowText
from qwen3_jax.network.model import Qwen3
from qwen3_jax.parameters.specs import Params
from qwen3_jax.sharding import mesh_of, under_mesh
from qwen3_jax.text.tokenizer import Tokenizer

MAX_NUM_SEQS = 64  # rows that run at once, when nobody says
STEPS = 32  # tokens of one call of `decode` on accelerators


def generate(
    model: Qwen3,
    params: Params,
    tok: Tokenizer,
    inputs: Sequence[Any],
    config: GenerationConfig | Sequence[GenerationConfig] | None = None,
    tools: Sequence[dict[str, Any]] | None = None,
    max_num_seqs: int = MAX_NUM_SEQS,
) -> list[Result]:
    """Answers all inputs. Up to `max_num_seqs` run as one batch; of more, the next begins where one has ended.

    Args:
      inputs: a string is raw text and is continued as it stands; a list of messages goes through the chat template.
      config: one for all (row i then samples with fold_in(seed, i)), or one for each input (seeds as given).
      tools: function descriptions for the template.
      max_num_seqs: most rows at once; memory for the cache grows with it.

    Returns:
      one result an input, in order; with `config.n`, n of them for each, one after another.

    Raises:
      ValueError: an input or a setting that can not work (one line naming the input).
    """
    results: dict[int, Result] = {}
    for piece in stream(model, params, tok, inputs, config, tools, max_num_seqs):
        if piece.result is not None:
            results[piece.index] = piece.result
    return [results[index] for index in sorted(results)]


def stream(
    model: Qwen3,
    params: Params,
    tok: Tokenizer,
    inputs: Sequence[Any],
    config: GenerationConfig | Sequence[GenerationConfig] | None = None,
    tools: Sequence[dict[str, Any]] | None = None,
    max_num_seqs: int = MAX_NUM_SEQS,
) -> Iterator[Piece]:
    """The same answers in pieces, as they are made; the last piece of an answer carries its result.

    Inputs are checked before this returns; see `generate` for arguments and errors.
    """
    if isinstance(max_num_seqs, bool) or not isinstance(max_num_seqs, int) or max_num_seqs < 1:
        raise ValueError(f"max_num_seqs must be a whole number of at least 1, got {max_num_seqs!r}: leave it out")
    rows, mesh = prepare(model, tok, inputs, config, tools), mesh_of(params)
    return under_mesh(mesh, _run(model, params, tok, rows, mesh, max_num_seqs))


def _run(
    model: Qwen3, params: Params, tok: Tokenizer, rows: list[Row], mesh: Mesh | None, max_num_seqs: int
) -> Iterator[Piece]:
    schedule = Schedule(Engine.of(model, params, tok, rows, mesh), rows, max_num_seqs)
    texts = {index: _text(tok, row) for index, row in enumerate(rows)}  # of the rows that have not ended
    made = schedule.admit()
    calls, steps, ahead = _rhythm(next(iter(made[0].outputs[0].token.devices())).platform)
    while True:
        # Made of the rows as they are before what was made is read: a row that has ended does nothing in them.
        following = [schedule.dispatch(calls, steps)] if ahead else []
        before = set(texts)
        for batch in made:
            yield from _emit(batch, texts, rows)
        if not texts:
            return
        schedule.release(before - set(texts))
        admitted = schedule.admit()
        made = [*following, *admitted] if ahead else [*admitted, schedule.dispatch(calls, steps)]


def _text(tok: Tokenizer, row: Row) -> RowText:
    config = row.config
    return RowText(tok, tuple(config.stop or ()), chat=row.chat, block=row.block, min_tokens=config.min_tokens)


def _rhythm(platform: str) -> tuple[int, int, bool]:
    """Calls dispatched together, steps of a call, and whether the next call is dispatched before the last one's tokens
    are read: an accelerator does not wait for text. A CPU makes the text itself, and would run steps in vain."""
    return (8, 1, False) if platform == "cpu" else (1, STEPS, True)


def _emit(made: Made, texts: dict[int, RowText], rows: list[Row]) -> Iterator[Piece]:
    """Text of the new tokens, row by row, and the result of every row that has ended, which leaves `texts`."""
    outputs = [jax.tree.map(np.asarray, output) for output in made.outputs]
    out = jax.tree.map(lambda *parts: np.concatenate(parts).T.tolist(), *outputs)
    for column, index in enumerate(made.owners):
        if index is None or index not in texts:
            continue
        text, row, parts = texts[index], rows[index], out.part[column]
        log_probs = (out.log_prob[column], out.sampling_log_prob[column]) if row.config.log_probs else ()
        for part in text.push(out.token[column], parts, out.sampled[column], *log_probs):
            yield Piece(index=index, **part._asdict())
        hit_end = END in parts
        if not (hit_end or text.stopped or text.num_tokens >= row.max_new_tokens):
            continue
        del texts[index]
        for part in text.flush():
            yield Piece(index=index, **part._asdict())
        yield Piece(index=index, result=text.result(hit_end=hit_end, prompt_tokens=len(row.tokens)))
