"""A run's data from its configuration: batches that resume exactly, held-out batches, and what was read."""

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import grain
import jax
import numpy as np

from qwen3_jax.sharding.launch.processes import first_does, gather, is_first
from qwen3_jax.text.tokenizer import Tokenizer
from qwen3_jax.train.config import TrainConfig
from qwen3_jax.train.data.corpus import Corpus
from qwen3_jax.train.data.examples import cache_of
from qwen3_jax.train.data.mixture import Cell, Epochs, Mixture, MixtureIterDataset, make_mixture
from qwen3_jax.train.data.packing import ENDLESS, Documents, Packed, PackIterDataset, fill
from qwen3_jax.train.data.report import MixtureReport, make_report
from qwen3_jax.train.settings import DataConfig
from qwen3_jax.train.streams import Share, shares

_HELD_OUT = (5,)  # seed of the order of held-out documents, the same for every run


@runtime_checkable
class MadeDocuments(Documents, Protocol):
    """Documents without end, with the names of their domains."""

    @property
    def domain_names(self) -> tuple[str, ...]: ...


@runtime_checkable
class World(Protocol):
    """Documents that are made and not read, for a run that names no sources. The core knows none: `train` names the
    pocket model's."""

    def documents(self, tok: Any, data: DataConfig, seed: int) -> tuple[MadeDocuments, Documents]:
        """Documents to train on, and others to measure on."""

    def texts(self, data: DataConfig, count: int, seed: int) -> Iterator[str]:
        """What a tokenizer is made from."""


_WORLDS: list[World] = []


def use_world(made: World) -> None:
    """From now on runs without sources train on what this world makes."""
    _WORLDS[:] = [made]


def world() -> World:
    """The one in use.

    Raises:
      ValueError: there is none.
    """
    if not _WORLDS:
        raise ValueError("data.sources must name files, got none: name some")
    return _WORLDS[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """What a run trains on and is measured on.

    Attributes:
      domain_names: name of each number in `Batch.domains`.
      documents: what training reads, by index.
      mixture: the order that it reads them in.
      labels: names of the labels of `combinations`.
      combinations: the label combinations that occur.
    """

    config: TrainConfig
    domain_names: tuple[str, ...]
    documents: Documents
    mixture: Mixture
    labels: tuple[str, ...]
    combinations: tuple[tuple[str, ...], ...]
    held_out_documents: Documents | None
    held_out_members: np.ndarray | int

    def batches(
        self, here: Sequence[int], places: Mapping[int, Any] | Sequence[Any] | None = None
    ) -> Iterator[tuple[Share, dict[int, Any]]]:
        """Shares of the global batches, each with the places of the streams after it.

        Args:
          here: the streams that this process makes (`streams_here`).
          places: JSON values by stream, as they came with a share; training goes on with the very next example.
        """
        packers = {stream: self._packer(stream) for stream in here}
        return shares(packers, self.config.data.rows, places)

    def held_out(self, here: Sequence[int], batches: int | None = None, rows: int | None = None) -> list[Share]:
        """The held-out batches, the same at every call: from `evaluation.sources`, else from the share `data.held_out`
        of the examples, or the pocket model's held-out problems.

        Documents of files come in one random order, whatever the seed of the run, so that a few batches are a fair
        sample of all sources. A domain that has documents and no token in the batches is warned of.

        Where there are fewer documents than `batches` hold, the last ones have empty rows, or are missing (one
        process) or empty (several, which make the same number).

        Args:
          batches, rows: None: those of `evaluation`.

        Raises:
          ValueError: there is nothing held out.
        """
        evaluation, data = self.config.evaluation, self.config.data
        if self.held_out_documents is None:
            raise ValueError(
                "evaluation must have held-out examples, got none: set evaluation.sources or data.held_out"
            )
        rows = rows or evaluation.rows or data.rows
        endless = isinstance(self.held_out_members, int) and self.held_out_members == ENDLESS
        order = Epochs(self.held_out_members, _HELD_OUT, passes=None if endless else 1, shuffled=not endless)
        # Packing that chooses among more than it needs takes the long ones first.
        lookahead = data.lookahead if endless else 1.0
        each, documents = rows // data.streams, self.held_out_documents
        if rows % data.streams:
            raise ValueError(
                f"evaluation.rows must be a multiple of data.streams={data.streams}, got {rows}: change it"
            )
        empty = Packed(fill([[]] * each, data.length), (), documents.name)
        made = []
        with contextlib.ExitStack() as stack:
            iterators = {}
            for stream in here:
                plain = _plain(order, documents, stream, data)
                iterators[stream] = iter(PackIterDataset(plain, documents, each, data.length, lookahead))
                stack.callback(iterators[stream].close)
            for _ in range(batches or evaluation.batches):
                packed = {stream: next(iterator, empty) for stream, iterator in iterators.items()}
                if jax.process_count() == 1 and all(part is empty for part in packed.values()):
                    break  # several processes make the same number, whatever each has
                made.append(Share(rows, packed))
        if isinstance(documents, Corpus):
            self._warn_unseen(documents, made, rows)
        return made

    def _warn_unseen(self, corpus: Corpus, made: Sequence[Share], rows: int) -> None:
        """Of domains that these batches do not measure; every process calls it."""
        parts = [part for share in made for part in share.parts.values()]
        own = sorted({int(domain) for part in parts for domain in np.unique(part.domains[part.loss_mask])})
        seen = {domain for process in gather(own) for domain in process}
        unseen = [self.domain_names[domain] for domain in corpus.domains_of(self.held_out_members) - seen]
        if unseen and is_first():
            warnings.warn(
                f"the held-out batches ({len(made)} of {rows} rows) have no token of the domains "
                f"{', '.join(sorted(unseen))}, whose loss is not measured: raise evaluation.batches or evaluation.rows",
                stacklevel=3,
            )

    def report(self, places: Mapping[int, Any] | Sequence[Any]) -> MixtureReport:
        """Tokens by label and by combination, against the target.

        Args:
          places: of the streams: of all of them (`gather_places`), or what one process has.
        """
        values = places.values() if isinstance(places, Mapping) else places
        malformed = int(self.documents.bad.sum()) if isinstance(self.documents, Corpus) else 0
        return make_report(self.labels, self.combinations, self.mixture, values, malformed)

    def _packer(self, stream: int) -> PackIterDataset:
        data = self.config.data
        order: grain.IterDataset
        if len(self.mixture.cells) == 1 and (data.streams == 1 or not isinstance(self.documents, Corpus)):
            order = _plain(self.mixture.cells[0].members, self.documents, stream, data)
        else:
            assert isinstance(self.documents, Corpus)
            mixed = MixtureIterDataset(self.mixture.cells, self.documents.size, stream, data.streams)
            order = mixed.map(partial(_with_pieces, self.documents))
        return PackIterDataset(order, self.documents, data.rows // data.streams, data.length, data.lookahead)


def make_data(config: TrainConfig, tok: Tokenizer) -> Data:
    """The data of a run; every process calls it together.

    What is counted once about files is kept in `data.cache`, and made again when a file has changed.

    Raises:
      FileNotFoundError: a source names no files.
      ValueError: what is wrong with the sources, their labels, or the mixture, in one line.
    """
    data = config.data
    if not data.sources:
        source, held = world().documents(tok, data, config.seed)
        return endless_data(config, source, source.domain_names, held)
    cache = cache_of(data)
    # Lengths are needed before anything is drawn by a mix of lengths, and on every process by an order that several
    # processes share: then no process tokenises the others' part.
    several = (bool(data.mixture.by) or data.streams > 1) and jax.process_count() > 1
    make = partial(Corpus, data.sources, tok, data, cache, count=bool(data.lengths) or several)
    if jax.process_count() > 1:
        first_does(lambda: len(make()))  # the others then find it in the cache, if they share it
    corpus = make()
    kept = corpus.digests < np.uint64(int(data.held_out * 2**64)) if data.held_out else np.zeros(len(corpus), bool)
    kept &= ~corpus.bad
    usable = ~kept & ~corpus.bad
    if data.held_out and not kept.any():
        raise ValueError(
            f"data.held_out must hold out at least one of the {len(corpus)} documents, got none at {data.held_out}: "
            "raise it"
        )
    mixture = make_mixture(corpus, data.mixture.weights, data.lengths, usable, config.seed)
    _warn_left_out(corpus, mixture, usable)
    held_out: Corpus | None = corpus if data.held_out else None
    members: np.ndarray | int = np.flatnonzero(kept)
    if config.evaluation.sources:
        plain = dataclasses.replace(data, mixture=type(data.mixture)(), lengths=(), held_out=0.0)
        held_out = Corpus(config.evaluation.sources, tok, plain, cache, count=False)
        members = np.flatnonzero(~held_out.bad) if held_out.bad.any() else len(held_out)
    names = tuple(sorted({*corpus.domain_names, *(held_out.domain_names if held_out else ())}))
    for documents in (corpus, held_out):
        if documents is not None:
            documents.number_domains(names)
    return Data(
        config=config,
        domain_names=names,
        documents=corpus,
        mixture=mixture,
        labels=corpus.labels.names,
        combinations=corpus.labels.combinations,
        held_out_documents=held_out,
        held_out_members=members,
    )


def endless_data(
    config: TrainConfig, documents: Documents, domain_names: Sequence[str] = ("all",), held_out: Documents | None = None
) -> Data:
    """Data of documents without end, in the order of their index: made ones, such as the pocket model's tasks.

    Args:
      domain_names: `Example.domain` and `Example.combination` are numbers of these.
      held_out: documents to evaluate on.
    """
    every = Cell(labels={}, weight=1.0, members=Epochs(ENDLESS, (), passes=1, shuffled=False))
    return Data(
        config=config,
        domain_names=tuple(domain_names),
        documents=documents,
        mixture=Mixture((every,), (0,) * len(domain_names)),
        labels=("domain",),
        combinations=tuple((name,) for name in domain_names),
        held_out_documents=held_out,
        held_out_members=ENDLESS,
    )


def _with_pieces(documents: Documents, index: int) -> tuple[int, Any]:
    return index, documents.pieces(index)


def _plain(order: Epochs, documents: Documents, stream: int, data: DataConfig) -> grain.IterDataset:
    """Every N-th document of an order, read ahead by threads. Each of several streams comes to the end of an epoch at a
    time of its own, so they need documents of which none comes twice."""
    mine = grain.MapDataset.source(order)[stream :: data.streams].map(partial(_with_pieces, documents))
    return mine.to_iter_dataset(
        grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=64 if data.threads else 0)
    )


def _warn_left_out(corpus: Corpus, mixture: Mixture, usable: np.ndarray) -> None:
    cell_of = np.array(mixture.cell_of)[corpus.labels.combination]
    left = int(((cell_of < 0) & usable).sum())
    if left:
        warnings.warn(
            f"{left} of {int(usable.sum())} documents are left out: their weight is 0 or no data.lengths holds them",
            stacklevel=3,
        )
