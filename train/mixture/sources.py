"""Tokens of the labelled files: how many each combination has, the and the held-out sets."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from qwen3_jax.text.tokenizer import Tokenizer
from qwen3_jax.train.data import Example
from qwen3_jax.train.data.corpus import Corpus
from qwen3_jax.train.mixture.labels import Combination, count_tokens
from qwen3_jax.train.mixture.proxy import HeldOutSet
from qwen3_jax.train.settings import DataConfig, MixtureConfig, SourceConfig, WeightConfig


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
