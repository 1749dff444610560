"""What is measured on held-out documents: a fair sample of all sources, the same whoever asks and whatever the seed."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3_jax.train.config import TrainConfig
from qwen3_jax.train.data import Data, make_data
from qwen3_jax.train.settings import EvaluationConfig, SourceConfig
from tests.train.data.corpora import config, records, write_jsonl
from tests.train.pocket_fixtures import pocket_tokenizer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources alike but for their domain, and one of few documents."""
    path = tmp_path_factory.mktemp("corpus")
    for domain, count in (("web", 600), ("code", 600), ("rare", 5)):
        rows = [{**row, "domain": domain, "text": f"{domain} {row['text']}"} for row in records(count, seed=count)]
        write_jsonl(path / f"{domain}.jsonl", rows)
    return path


def settings(corpus: Path, *domains: str, batches: int = 1, rows: int = 8, **data: Any) -> TrainConfig:
    made = config(corpus, *(corpus / f"{domain}.jsonl" for domain in domains), **data)
    return dataclasses.replace(made, evaluation=EvaluationConfig(batches=batches, rows=rows))


def names(data: Data) -> list[str]:
    streams = range(data.config.data.streams)
    return [name for share in data.held_out(streams) for name in share.examples]


def test_one_batch_is_a_fair_sample_of_all_sources(corpus: Path) -> None:
    """Half of its documents from each of two sources of one size, and as long as the others: within 4 standard errors
    of a draw at random."""
    data = make_data(settings(corpus, "web", "code", held_out=0.5, rows=16), pocket_tokenizer())
    sample = names(data)
    assert isinstance(data.held_out_members, np.ndarray)
    assert 40 < len(sample) < data.held_out_members.size / 4
    web = sum("web.jsonl" in name for name in sample)
    assert abs(web - len(sample) / 2) < 4 * np.sqrt(len(sample) / 4)
    sizes = {data.documents.name(i): len(data.documents.pieces(i)[0].tokens) for i in data.held_out_members.tolist()}
    every, ours = np.array(list(sizes.values())), np.array([sizes[name] for name in sample])
    assert abs(ours.mean() - every.mean()) < 4 * every.std() / np.sqrt(len(ours))


@pytest.mark.parametrize("own_files", [False, True])
def test_the_batches_do_not_depend_on_the_seed_and_come_again(corpus: Path, own_files: bool) -> None:
    def make(seed: int, streams: int = 1) -> Data:
        made = settings(corpus, "web", "code", held_out=0.0 if own_files else 0.3, batches=3, streams=streams)
        if own_files:
            sources = (SourceConfig(path=str(corpus / "code.jsonl")), SourceConfig(path=str(corpus / "web.jsonl")))
            made = dataclasses.replace(made, evaluation=dataclasses.replace(made.evaluation, sources=sources))
        return make_data(dataclasses.replace(made, seed=seed), pocket_tokenizer())

    first = make(1)
    assert names(first) == names(first) == names(make(2))
    assert {Path(name.rpartition(":")[0]).stem for name in names(first)} == {"web", "code"}
    parts = make(3, streams=2)  # a process makes its own streams: the same, whoever makes the others
    for whole, *halves in zip(*(parts.held_out(here) for here in ([0, 1], [0], [1])), strict=True):
        for stream, half in enumerate(halves):
            assert half.packed[stream].documents == whole.packed[stream].documents


def test_a_domain_that_no_batch_has_is_named_at_the_start(corpus: Path) -> None:
    made = settings(corpus, "web", "code", "rare", held_out=0.5, rows=2)
    data = make_data(made, pocket_tokenizer())
    with pytest.warns(UserWarning, match=r"\(1 of 2 rows\) have no token of the domains rare, whose loss is not"):
        data.held_out([0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert any("rare" in name for share in data.held_out([0], batches=1000) for name in share.examples)


def test_a_share_that_holds_nothing_out_is_refused(corpus: Path) -> None:
    with pytest.raises(ValueError, match=r"at least one of the 1205 documents, got none at 1e-09: raise it"):
        make_data(settings(corpus, "web", "code", "rare", held_out=1e-9), pocket_tokenizer())
