"""Tokens made ahead: shards of plain .npy arrays that are mapped into memory, not read.

    DIR/tokens.json                   how they were made: tokenizer, sources, documents a shard
    DIR/shard-00000/tokens.npy        int32, the documents one after another
    DIR/shard-00000/ends.npy          int64[n], where each one ends
    DIR/shard-00000/loss_runs.npy     int64, for documents with a mask: where the mask changes, beginning with no loss
    DIR/shard-00000/loss_ends.npy     int64[n], where each document's runs end; -1: all of it is learnt
    DIR/shard-00000/labels.json       {"names": [...], "values": [[...], ...], "codes": [[...], ...]} a label a column
    DIR/shard-00000/records.npy       int64[n], the number of the input record that each document is of

A shard appears whole, under its name, or not at all.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_jax.text.tokenizer import Tokenizer
from qwen3_jax.train.data.examples import Document, fingerprint
from qwen3_jax.train.settings import SourceConfig

MANIFEST = "tokens.json"
_ARRAYS = ("tokens", "ends", "loss_runs", "loss_ends", "records")


def shard_name(number: int) -> str:
    return f"shard-{number:05d}"


def write_shard(
    target: Path, documents: Sequence[tuple[int, Document, Mapping[str, str]]], names: Sequence[str]
) -> None:
    """Writes one shard beside its place and renames it.

    Args:
      documents: number of the input record, content, labels.
      names: labels that are kept.
    """
    beside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    runs: list[int] = []
    loss_ends = []
    for _, document, _ in documents:
        if document.whole:
            runs += _changes(document.loss)
        loss_ends.append(len(runs) if document.whole else -1)
    empty = np.zeros(0, np.int32)
    arrays = {
        "tokens": np.concatenate([document.tokens for _, document, _ in documents] or [empty]),
        "ends": np.cumsum([len(document.tokens) for _, document, _ in documents], dtype=np.int64),
        "loss_runs": np.array(runs, np.int64),
        "loss_ends": np.array(loss_ends, np.int64),
        "records": np.array([record for record, _, _ in documents], np.int64),
    }
    for name in _ARRAYS:
        np.save(beside / f"{name}.npy", arrays[name], allow_pickle=False)
    columns = [[labels.get(name) for _, _, labels in documents] for name in names]
    values = [sorted({value for value in column if value is not None}) for column in columns]
    codes = [
        [-1 if value is None else known.index(value) for value in column]
        for column, known in zip(columns, values, strict=True)
    ]
    text = json.dumps({"names": list(names), "values": values, "codes": codes}, ensure_ascii=False)
    (beside / "labels.json").write_text(text, encoding="utf-8")
    os.replace(beside, target)


def open_shards(source: SourceConfig, tok: Tokenizer) -> list["TokenShard"]:
    """The shards of a directory that `qwen3-jax tokenize` wrote; none where it is not one.

    Raises:
      ValueError: shards are missing, it was made with another tokenizer, or `kind` is not tokens.
    """
    directory = Path(source.path)
    if not (directory / MANIFEST).is_file():
        return []
    if source.kind != "tokens":
        raise ValueError(f"{directory} must be read with kind: tokens, got kind: {source.kind}: correct it")
    manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    if manifest["tokenizer"] != fingerprint(tok):
        raise ValueError(f"{directory} must be made with this run's tokenizer, got another: tokenize again")
    missing = [name for i in range(manifest["shards"]) if not (directory / (name := shard_name(i))).is_dir()]
    if missing:
        raise ValueError(f"{directory} must hold {manifest['shards']} shards, {missing[0]} is missing: tokenize again")
    return [TokenShard(directory / shard_name(i), manifest["digest"]) for i in range(manifest["shards"])]


def shard_files(directory: Path) -> list[list[Path]]:
    """The files of each shard, in order."""
    manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    names = [*(f"{name}.npy" for name in _ARRAYS), "labels.json"]
    return [[directory / shard_name(number) / name for name in names] for number in range(manifest["shards"])]


def label_names(shard: Path) -> list[str]:
    """The labels that some record of a shard has."""
    names: list[str] = json.loads((shard / "labels.json").read_text(encoding="utf-8"))["names"]
    return names


class TokenShard:
    """A `readers.Reader` of records {"tokens", "loss_mask" where there is one, "labels"}."""

    def __init__(self, path: Path, digest: str) -> None:
        self.name = str(path)
        arrays = {name: np.load(path / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
        self._tokens, self._runs = arrays["tokens"], arrays["loss_runs"]
        self._starts = np.concatenate([[0], arrays["ends"]])
        self._loss_ends = np.asarray(arrays["loss_ends"])
        self._loss_starts = np.concatenate([[0], np.maximum.accumulate(np.maximum(self._loss_ends, 0))])
        labels = json.loads((path / "labels.json").read_text(encoding="utf-8"))
        self._names, self._values, self._codes = labels["names"], labels["values"], labels["codes"]
        self.identity = hashlib.sha256(f"{digest} {path.name}".encode()).hexdigest()[:32]

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens = np.array(self._tokens[self._starts[index] : self._starts[index + 1]])
        record: dict[str, Any] = {"tokens": tokens}
        if self._loss_ends[index] >= 0:
            changes = self._runs[self._loss_starts[index] : self._loss_ends[index]]
            record["loss_mask"] = _mask(changes, len(tokens))
        return record | self._labelled(index)

    def scan(self, fields: set[str], start: int = 0) -> Iterator[dict[str, Any]]:
        return map(self.__getitem__ if "tokens" in fields else self._labelled, range(start, len(self)))

    def count(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """int64[n] tokens of each document, and int64[n] those that its pieces put into rows of `length` (see
        `examples.cut`); no token is read."""
        tokens = np.diff(self._starts).astype(np.int64)
        cuts = -(-(tokens - 1) // max(length - 1, 1)) - 1  # each but the first piece repeats a token
        long = np.where((self._loss_ends >= 0) | (length < 2), 0, tokens + cuts)
        return tokens, np.where(tokens <= length, tokens, long)

    def _labelled(self, index: int) -> dict[str, Any]:
        columns = zip(self._names, self._values, self._codes, strict=True)
        return {"labels": {name: values[codes[index]] for name, values, codes in columns if codes[index] >= 0}}


def _changes(loss: np.ndarray) -> list[int]:
    """In: 0 0 1 1 0      Out: 2, 4"""
    return np.flatnonzero(np.diff(loss.astype(np.int8), prepend=0)).tolist()


def _mask(changes: np.ndarray, size: int) -> np.ndarray:
    """The inverse of `_changes`."""
    mask = np.zeros(size, bool)
    for start, stop in _pairs(changes.tolist(), size):
        mask[start:stop] = True
    return mask


def _pairs(changes: list[int], size: int) -> Iterator[tuple[int, int]]:
    return zip(changes[::2], [*changes[1::2], size][: len(changes[::2])], strict=True)
