"""The documents of all sources under one index, with their labels."""

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qwen3_jax.text.tokenizer import Tokenizer
from qwen3_jax.train.data.examples import Encoder, cut
from qwen3_jax.train.data.line_files import LeftOut, described, stopped_by
from qwen3_jax.train.data.packing import Example, NoPieces
from qwen3_jax.train.data.readers import Reader, open_readers
from qwen3_jax.train.data.tables import MISSING, Table, make_table
from qwen3_jax.train.data.token_shards import open_shards
from qwen3_jax.train.settings import DataConfig, SourceConfig

UNLABELLED = "unlabelled"


@dataclasses.dataclass(frozen=True)
class Labels:
    """Labels of every document as one table.

    Attributes:
      names: of the labels.
      combinations: the different combinations of their values that occur.
      combination: int32[n], which of them a document has.
    """

    names: tuple[str, ...]
    combinations: tuple[tuple[str, ...], ...]
    combination: np.ndarray


class Corpus:
    """Documents by index (`packing.Documents`): files are read and tokenised when a document is asked for.

    Attributes:
      digests: uint64[n] of the contents, or empty.
      tokens: int64[n], length of each document, or empty.
      bad: bool[n], the malformed records that are left out; those that are found later too.
      domain_names: values of the label `data.domain`, sorted.
    """

    def __init__(
        self, sources: Sequence[SourceConfig], tok: Tokenizer, data: DataConfig, cache: Path, *, count: bool
    ) -> None:
        """Args:
        count: whether lengths are counted ahead; else a document is made when its size is asked for.

        Raises:
          FileNotFoundError: a source names no files.
          ValueError: damaged files, records without what their kind needs, or without a label of the mixture.
        """
        self._length, self._skip, self._left_out = data.length, data.on_bad_record == "skip", LeftOut()
        self._readers: list[tuple[Reader, Encoder]] = []
        for source in sources:
            for reader in open_shards(source, tok) or open_readers(source, cache):
                self._readers.append((reader, Encoder(tok, source)))
        self._starts = np.cumsum([0, *(len(reader) for reader, _ in self._readers)])
        if not len(self):
            raise ValueError(f"data.sources must hold examples, got none in {len(self._readers)} files: correct them")
        names = tuple(dict.fromkeys([*data.mixture.by, *([data.domain] if data.domain else [])]))
        tables = [
            make_table(
                reader,
                encoder,
                names,
                digests=data.held_out > 0,
                length=data.length if count else 0,
                cache=cache,
                skip=self._skip,
            )
            for reader, encoder in self._readers
        ]
        self.digests = np.concatenate([table.digests for table in tables])
        self.tokens = np.concatenate([table.tokens for table in tables])
        self.bad = np.concatenate([table.bad for table in tables])
        self._warn_of_bad(tables)
        self._sizes = np.concatenate([table.sizes for table in tables]) if count else np.full(len(self), -1, np.int64)
        self.labels = self._join(names, tables, data.mixture.by)
        self._label = data.domain
        self.domain_names, self._domain = self._domains(data.domain)
        self._numbers = list(range(len(self.domain_names)))
        self._made = functools.lru_cache(maxsize=256)(self._make)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def pieces(self, index: int) -> Sequence[Example]:
        """The examples of document `index`, in order; one longer than a row where it may not be cut.

        Raises:
          BadRecord: the record is malformed, and not to be left out (then it has no pieces); the message names it.
        """
        return self._made(int(index))

    def size(self, index: int) -> int:
        """Tokens that document `index` puts into rows."""
        known = int(self._sizes[index])
        if known < 0:
            sizes = [len(example.tokens) for example in self.pieces(index)]
            known = self._sizes[index] = sum(size for size in sizes if size <= self._length)
        return int(known)

    def name(self, index: int) -> str:
        """ "file:index in the file"."""
        file, local = self._locate(index)
        return f"{self._readers[file][0].name}:{local}"

    def number_domains(self, names: Sequence[str]) -> None:
        """Numbers domains by their place in `names` from now on, which holds all of them."""
        self._numbers = [names.index(name) for name in self.domain_names]
        self._made.cache_clear()

    def domains_of(self, members: np.ndarray | int) -> set[int]:
        """Numbers of the domains of these documents (int: of so many from the first on)."""
        chosen = slice(members) if isinstance(members, int) else members
        found = np.unique(self.labels.combination[chosen]).tolist()
        return {self._numbers[self._domain[combination]] for combination in found}

    def relabel(self, labels: Labels) -> None:
        """Takes another table of combinations, by which `Example.combination` counts from now on."""
        self.labels = labels
        self.domain_names, self._domain = self._domains(self._label)
        self._made.cache_clear()

    def _warn_of_bad(self, tables: Sequence[Table]) -> None:
        if self.bad.all():
            raise ValueError(f"data.sources must hold examples, got {len(self)} malformed records: correct them")
        for start, table in zip(self._starts.tolist(), tables, strict=False):
            for local, text in table.faults:
                self._left_out.note(start + local, text)
        if self._left_out.named:
            warnings.warn(f"{int(self.bad.sum())} of {len(self)} records are malformed and left out", stacklevel=3)

    def _locate(self, index: int) -> tuple[int, int]:
        file = int(np.searchsorted(self._starts, index, side="right")) - 1
        return file, int(index - self._starts[file])

    def _make(self, index: int) -> tuple[Example, ...]:
        file, local = self._locate(index)
        reader, encoder = self._readers[file]
        try:
            documents = () if self.bad[index] else encoder.documents(reader[local])
        except ValueError as error:
            text = described(reader.name, local, error)
            if not self._skip:
                raise stopped_by(text) from None
            self.bad[index] = True
            self._left_out.note(index, text)
        if self.bad[index]:
            return NoPieces()
        combination = int(self.labels.combination[index])
        domain = self._numbers[self._domain[combination]]
        return tuple(
            Example(tokens=piece.tokens, loss=piece.loss, domain=domain, combination=combination)
            for document in documents
            for piece in cut(document, self._length)
        )

    def _join(self, names: tuple[str, ...], tables: Sequence[Table], needed: Sequence[str]) -> Labels:
        columns, values = [], []
        for name in names:
            known = sorted({value for table in tables for value in table.values[name]})
            numbers = {value: number for number, value in enumerate(known)}
            parts = []
            for table in tables:
                back = np.array([*(numbers[value] for value in table.values[name]), MISSING], np.int32)
                parts.append(back[table.labels[name]])  # -1 takes the last one
            column = np.concatenate(parts)
            missing = (column == MISSING) & ~self.bad
            if missing.any():
                if name in needed:
                    first = self.name(int(missing.argmax()))
                    raise ValueError(
                        f"every example must have the label {name!r} of data.mixture.by, {first} has none: "
                        "give it one, or its source a default (data.sources.labels)"
                    )
                column = np.where(column == MISSING, len(known), column)
                known = [*known, UNLABELLED]
            columns.append(column)
            values.append(known)
        if not names:
            return Labels((), ((),), np.zeros(len(self), np.int32))
        rows = np.stack(columns, 1)
        rows[self.bad] = rows[int((~self.bad).argmax())]  # any, since they are never asked for
        unique, inverse = np.unique(rows, axis=0, return_inverse=True)
        combinations = tuple(tuple(values[i][code] for i, code in enumerate(row)) for row in unique)
        return Labels(names, combinations, inverse.reshape(-1).astype(np.int32))

    def _domains(self, label: str) -> tuple[tuple[str, ...], list[int]]:
        if not label:
            return (UNLABELLED,), [0] * len(self.labels.combinations)
        place = self.labels.names.index(label)
        values = [combination[place] for combination in self.labels.combinations]
        names = tuple(sorted(set(values)))
        return names, [names.index(value) for value in values]
