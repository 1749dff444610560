"""One proxy: a training run with one mixture, and its losses on the held-out sets. A finished one is not done again."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qwen3_jax.checkpoints.load import from_pretrained
from qwen3_jax.files import written_beside
from qwen3_jax.network.model import Qwen3
from qwen3_jax.text.tokenizer import Tokenizer
from qwen3_jax.train.config import TrainConfig
from qwen3_jax.train.data import Batch, Example, fill
from qwen3_jax.train.data.corpus import Corpus
from qwen3_jax.train.mixture.labels import Combination, as_weights, count_tokens
from qwen3_jax.train.mixture.settings import changed
from qwen3_jax.train.objectives.objective import domain_losses
from qwen3_jax.train.parsing import to_dict
from qwen3_jax.train.run import run
from qwen3_jax.train.settings import DataConfig, MixtureConfig, SourceConfig, WeightConfig

_CHUNK = 1024  # tokens whose logits exist at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutSet:
    """What a loss is taken on.

    Attributes:
      name: in reports, "domain=math".
      weight: in the objective.
      examples: of at most a row each.
    """

    name: str
    weight: float
    examples: tuple[Example, ...]


def with_mixture(config: TrainConfig, by: Sequence[str], shares: Mapping[Combination, float]) -> TrainConfig:
    """The configuration with these weights."""
    return changed(config, {"data": {"mixture": {"by": list(by), "weights": as_weights(by, shares)}}})


def train_and_measure(config: TrainConfig, held_out: Sequence[HeldOutSet]) -> dict[str, float]:
    """Trains in `config.run_dir` and takes the loss of each held-out set; reads it where it was taken before.

    Returns:
      name of the set -> nats a token.

    Raises:
      SystemExit: 143 when the run was asked to stop.
    """
    result = Path(config.run_dir) / "held_out.json"
    identity = _identity(config, held_out)
    if result.exists():
        found = json.loads(result.read_text(encoding="utf-8"))
        if found["identity"] == identity:
            losses: dict[str, float] = found["losses"]
            return losses
    directory = run(config)
    if directory is None:
        raise SystemExit(143)
    model, params = from_pretrained(directory, dtype="float32")
    losses = {
        each.name: held_out_loss(model, params, each.examples, config.data.rows, config.data.length)
        for each in held_out
    }
    result.parent.mkdir(parents=True, exist_ok=True)
    with written_beside(result) as file:
        json.dump({"identity": identity, "losses": losses}, file)
    return losses


def held_out_loss(model: Qwen3, params: Any, examples: Sequence[Example], rows: int, length: int) -> float:
    """Mean cross-entropy in nats over the learnt tokens of the examples, packed into batches of one shape."""
    total, count = 0.0, 0.0
    for batch in _batches(examples, rows, length):
        sums = _sums(model, params, batch)
        total, count = total + float(sums[0]), count + float(sums[1])
    return total / count


@partial(jax.jit, static_argnums=0)
def _sums(model: Qwen3, params: Any, batch: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
    losses, counts = domain_losses(model, params, batch, _CHUNK, num_domains=1)
    return losses[0], counts[0]


def _batches(examples: Sequence[Example], rows: int, length: int) -> Iterator[Batch]:
    """All examples once, first fit in the order of their lengths; the last batch may have empty rows."""
    packed: list[list[Example]] = []
    room: list[int] = []
    for example in sorted(examples, key=lambda example: -len(example.tokens)):
        size = len(example.tokens)
        at = next((row for row, left in enumerate(room) if left >= size), None)
        if at is None:
            packed.append([])
            room.append(length)
            at = len(room) - 1
        packed[at].append(example)
        room[at] -= size
    packed += [[] for _ in range(-len(packed) % rows)]
    for first in range(0, len(packed), rows):
        yield jax.tree.map(jnp.asarray, fill(packed[first : first + rows], length))


def _identity(config: TrainConfig, held_out: Sequence[HeldOutSet]) -> str:
    """What a measurement depends on, as one text; files are taken to stay what they are."""
    tokens = [int(np.sum([len(example.tokens) for example in each.examples])) for each in held_out]
    values = to_dict(config) | {"run_dir": ""}
    return json.dumps([values, [each.name for each in held_out], tokens], sort_keys=True, default=str)


def natural_tokens(data: DataConfig, tok: Tokenizer, by: Sequence[str]) -> dict[Combination, int]:
    """Tokens of each combination in `data.sources`.

    Raises:
      ValueError: a document lacks a label of `by`.
    """
    corpus = _open(data.sources, tok, data, by)
    labels = [dict(zip(corpus.labels.names, values, strict=True)) for values in corpus.labels.combinations]
    sums = np.bincount(corpus.labels.combination, weights=corpus.tokens, minlength=len(labels))
    return count_tokens(zip(labels, sums.astype(int).tolist(), strict=True), by)


def held_out_sets(
    sources: Sequence[SourceConfig], tok: Tokenizer, target: Sequence[WeightConfig], data: DataConfig
) -> tuple[HeldOutSet, ...]:
    """The sets that the loss is to be low on.

    Args:
      target: labels and weight of each; (): one for each value of the label `data.domain`, evenly.

    Raises:
      ValueError: a set without documents, or a document without the labels that tell sets apart.
    """
    names = tuple(dict.fromkeys(name for entry in target for name in entry.labels)) or (data.domain,)
    corpus = _open(sources, tok, data, names)
    labels = [dict(zip(corpus.labels.names, values, strict=True)) for values in corpus.labels.combinations]
    if not target:
        target = [WeightConfig(labels={data.domain: value}) for value in corpus.domain_names]
    sets = []
    for entry in target:
        name = ", ".join(f"{label}={value}" for label, value in entry.labels.items()) or "all"
        matching = [number for number, own in enumerate(labels) if entry.labels.items() <= own.items()]
        chosen = np.flatnonzero(np.isin(corpus.labels.combination, matching))
        examples = tuple(_pieces(corpus, chosen, data.length))
        if not examples:
            raise ValueError(f"target {name} must match held-out documents, got none: correct its labels")
        sets.append(HeldOutSet(name=name, weight=entry.weight, examples=examples))
    return tuple(sets)


def _pieces(corpus: Corpus, chosen: np.ndarray, length: int) -> Iterator[Example]:
    for index in chosen:
        yield from (piece for piece in corpus.pieces(int(index)) if 1 < len(piece.tokens) <= length)


def _open(sources: Sequence[SourceConfig], tok: Tokenizer, data: DataConfig, by: Sequence[str]) -> Corpus:
    needed = MixtureConfig(by=tuple(by), weights=(WeightConfig(labels={by[0]: ""}),))  # labels that all must have
    plain = dataclasses.replace(data, sources=tuple(sources), mixture=needed, lengths=(), held_out=0.0)
    return Corpus(plain.sources, tok, plain, Path(data.cache), count=True)
