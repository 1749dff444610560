"""Mixtures: shares and epochs that are exact over all streams, a place to go on from, and a report that adds up."""

import collections
import dataclasses
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3_jax.train.config import TrainConfig
from qwen3_jax.train.data import Data, make_data
from qwen3_jax.train.data.mixture import Cell, Epochs, MixtureIterDataset
from qwen3_jax.train.settings import DataConfig, SourceConfig
from tests.train.data.corpora import config, records, write_jsonl
from tests.train.pocket_fixtures import pocket_tokenizer

WEIGHTS = {"de": 2.0, "en": 5.0, "zh": 3.0}
MIXTURE = {
    "by": ["language"],
    "weights": [{"labels": {"language": name}, "weight": weight} for name, weight in WEIGHTS.items()],
}


def size_of(index: int) -> int:
    return 1 + (index * 7919) % 50


def cells(*weights: float) -> list[Cell]:
    """Cells of 5, 12, 19 ... documents."""
    counts = [5 + 7 * number for number in range(len(weights))]
    ends = np.cumsum(counts)
    return [
        Cell(labels={"n": str(i)}, weight=weight, members=Epochs(np.arange(end - count, end), (0, i)))
        for i, (weight, count, end) in enumerate(zip(weights, counts, ends, strict=True))
    ]


@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.2), (0.9, 0.06, 0.04), (0.25, 0.25, 0.25, 0.25)])
def test_shares_and_epochs_are_exact_at_every_point(weights: tuple[float, ...], streams: int) -> None:
    """Over the streams together, whatever the sizes: the order is put together again from what each stream takes."""
    made = cells(*weights)
    taken = [iter(MixtureIterDataset(made, size_of, stream, streams)) for stream in range(streams)]
    tokens, loads = np.zeros(len(made)), np.zeros(streams)
    cell_of = {index: number for number, cell in enumerate(made) for index in cell.members.members.tolist()}
    times = collections.Counter(dict.fromkeys(cell_of, 0))
    for _ in range(600):
        stream = int(loads.argmin())  # the order goes to the stream with the fewest tokens
        index = next(taken[stream])
        loads[stream] += size_of(index)
        tokens[cell_of[index]] += size_of(index)
        times[index] += 1
        assert max(tokens - np.array(weights) * tokens.sum()) <= 50  # never more than one document ahead
        for number in range(len(made)):
            counts = [times[index] for index in cell_of if cell_of[index] == number]
            assert max(counts) - min(counts) <= 1  # every document once before any twice
    np.testing.assert_allclose(tokens / tokens.sum(), weights, atol=50 * len(weights) / tokens.sum())
    assert loads.max() - loads.min() <= 50


def test_the_order_goes_on_from_any_point_and_does_not_depend_on_who_asks() -> None:
    dataset = MixtureIterDataset(cells(0.5, 0.3, 0.2), size_of, 1, 2)
    whole = iter(dataset)
    states, indices = [], []
    for _ in range(60):
        states.append(json.loads(json.dumps(whole.get_state())))
        indices.append(next(whole))
    for at in (0, 1, 17, 59):
        again = iter(dataset)
        again.set_state(states[at])
        assert list(itertools.islice(again, 60 - at)) == indices[at:]


@pytest.mark.parametrize("count", [7, 66_000])  # a permutation that is held, and Grain's that is computed
def test_an_epoch_is_a_permutation_and_the_next_one_another(count: int) -> None:
    order = Epochs(count, (3, 1))
    first, second = ([order[epoch * count + place] for place in range(count)] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(count))
    assert first != second != list(range(count))
    assert [Epochs(count, (4, 1))[place] for place in range(count)] != first


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus")
    write_jsonl(path / "a.jsonl", records(120))
    write_jsonl(path / "b.jsonl", records(60, seed=1))
    return path


def make(corpus: Path, **more: Any) -> Data:
    return make_data(config(corpus, corpus / "*.jsonl", **more), pocket_tokenizer())


def test_batches_have_the_weights_and_the_report_says_so(corpus: Path) -> None:
    data = make(corpus, mixture=MIXTURE, streams=2)
    stream = data.batches([0, 1])
    names: collections.Counter[str] = collections.Counter()
    domains: collections.Counter[int] = collections.Counter()
    for _ in range(60):
        share, places = next(stream)
        names.update(share.examples)
        batch = share.place(None)
        domains.update(batch.domains[batch.segment_ids > 0].tolist())
    report = data.report(places)
    assert data.domain_names == ("book", "web")
    by_label = {tuple(line.labels.items()): line for line in report.labels}
    for language, weight in WEIGHTS.items():
        line = by_label[("language", language),]
        assert line.target == pytest.approx(weight / 10)
        assert line.share == pytest.approx(weight / 10, abs=0.01)
    for number, name in enumerate(data.domain_names):
        assert by_label[("domain", name),].tokens == domains[number]
    assert by_label[("domain", "web"),].target is None
    assert sum(line.tokens for line in report.combinations) == sum(domains.values())
    # Names are those of the records, and their languages add up to the report's tokens.
    rows = {f"{corpus / 'a.jsonl'}:{i}": row for i, row in enumerate(records(120))}
    rows |= {f"{corpus / 'b.jsonl'}:{i}": row for i, row in enumerate(records(60, seed=1))}
    tokens: collections.Counter[str] = collections.Counter()
    for name, times in names.items():
        tokens[rows[name]["language"]] += times * (len(pocket_tokenizer().encode(rows[name]["text"])) + 1)
    assert {language: by_label[("language", language),].tokens for language in WEIGHTS} == dict(tokens)
    assert "language=zh" in str(report)
    assert "target 30.00%" in str(report)


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("mixture", [MIXTURE, {}])
def test_a_resumed_run_sees_exactly_the_next_example(corpus: Path, mixture: Any, threads: int) -> None:
    """Cut anywhere, with threads that are ahead; a part of the streams makes the same rows."""
    data = make(corpus, mixture=mixture, streams=2, threads=threads)
    whole = list(itertools.islice(data.batches([0, 1]), 9))
    for cut in (1, 4, 8):
        places = json.loads(json.dumps([whole[cut - 1][1][stream] for stream in (0, 1)]))
        for (ours, after), (theirs, expected) in zip(data.batches([1], places), whole[cut:], strict=False):
            assert ours.packed[1].documents == theirs.packed[1].documents
            np.testing.assert_array_equal(ours.parts[1].tokens, theirs.parts[1].tokens)
            assert after[1] == expected[1]


def test_counting_ahead_changes_nothing(corpus: Path) -> None:
    """Lengths that are counted ahead (as with many processes) and lengths found on the way give one order."""
    from qwen3_jax.train.data.corpus import Corpus

    data = make(corpus, mixture=MIXTURE)
    settings = data.config.data
    counted = Corpus(settings.sources, pocket_tokenizer(), settings, corpus / "cache", count=True)
    assert isinstance(data.documents, Corpus)
    assert [counted.size(i) for i in range(len(counted))] == [data.documents.size(i) for i in range(len(counted))]


def test_mistakes_in_a_mixture_are_named(corpus: Path) -> None:
    def mixture(*weights: dict[str, Any], by: tuple[str, ...] = ("language",)) -> dict[str, Any]:
        return {"by": list(by), "weights": list(weights)}

    de, en, zh = MIXTURE["weights"]
    for wrong, says in (
        (mixture(de, en), r"must name language=zh once, got none: add it, with weight 0 to leave it out"),
        (mixture(de, en, zh, {"labels": {"language": "fr"}}), r"must hold examples of language=fr, got none"),
        (mixture(de, en, zh, en), r"must name language=en once, got language=en and language=en: make them exclude"),
        (mixture(de, by=("lang",)), r"labels must be some of mixture.by=\['lang'\], got \{'language': 'de'\}"),
        (mixture(by=("language",)), "needs both `by` and `weights`"),
        (mixture({"labels": {"kind": "x"}}, by=("kind",)), r"must have the label 'kind' .* a.jsonl:0 has none"),
        (mixture({"labels": {"language": "de"}, "weight": 0.0}), "must not all be 0"),
    ):
        with pytest.raises(ValueError, match=says.replace("* a", "*a")):
            make(corpus, mixture=wrong)


def test_weight_zero_leaves_a_combination_out_and_says_so(corpus: Path) -> None:
    de, en, zh = MIXTURE["weights"]
    with pytest.warns(UserWarning, match=r"\d+ of 180 documents are left out: their weight is 0"):
        data = make(corpus, mixture={"by": ["language"], "weights": [de, {**en, "weight": 0.0}, zh]})
    _, places = list(itertools.islice(data.batches([0]), 10))[-1]
    shares = {line.labels["language"]: line.share for line in data.report(places).labels if "language" in line.labels}
    assert shares["en"] == 0.0
    assert shares["zh"] == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize("mixture", [{}, MIXTURE])
def test_length_mix(corpus: Path, mixture: Any) -> None:
    """Three quarters of the tokens from documents of 30 tokens and more; with weights of languages at the same time."""
    lengths = [{"share": 0.75, "minimum": 30, "maximum": 120}, {"share": 0.25, "minimum": 10, "maximum": 30}]
    with pytest.warns(UserWarning, match="documents are left out: their weight is 0 or no data.lengths holds them"):
        data = make(corpus, mixture=mixture, lengths=lengths)
    tokens = np.zeros(200)
    made = list(itertools.islice(data.batches([0]), 60))
    for share, _ in made:
        for row in share.parts[0].segment_ids:
            for size in np.bincount(row)[1:]:
                tokens[size] += size
    assert tokens[:10].sum() == tokens[121:].sum() == 0
    assert tokens[30:].sum() / tokens.sum() == pytest.approx(0.75, abs=0.01)
    report = data.report(made[-1][1])
    by_label = {tuple(line.labels.items()): line for line in report.labels}
    assert by_label[("length", "30-120"),].target == pytest.approx(0.75)
    assert by_label[("length", "30-120"),].tokens == tokens[30:].sum()
    if mixture:
        for language, weight in WEIGHTS.items():
            assert by_label[("language", language),].target == pytest.approx(weight / 10, abs=1e-6)
            assert by_label[("language", language),].share == pytest.approx(weight / 10, abs=0.01)


def test_held_out_examples_are_never_trained_on(corpus: Path, tmp_path: Path) -> None:
    """By content, so that the same text in two files is on one side; the same split whatever the mixture."""
    copy = write_jsonl(tmp_path / "c.jsonl", records(120))
    sources = [{"path": str(corpus / "a.jsonl")}, {"path": str(copy)}]
    data = make(corpus, held_out=0.2, sources=sources, mixture=MIXTURE)
    held_out = [name for share in data.held_out([0], batches=100) for name in share.examples]
    trained = {name for share, _ in itertools.islice(data.batches([0]), 60) for name in share.examples}

    def split(names: Iterable[str]) -> set[int]:
        return {int(name.rpartition(":")[2]) for name in names}

    assert len(held_out) == len(set(held_out))
    assert split(held_out) | split(trained) == set(range(120))
    assert not split(held_out) & split(trained)
    assert 0.1 < len(held_out) / 240 < 0.3
    again = make(corpus, held_out=0.2, sources=sources)
    assert [name for share in again.held_out([0], batches=100) for name in share.examples] == held_out
    assert len(data.held_out([0], batches=2)) == 2
    with pytest.raises(ValueError, match=r"set evaluation\.sources or data\.held_out"):
        make(corpus).held_out([0])


def test_evaluation_has_files_of_its_own_and_one_numbering_of_domains(corpus: Path, tmp_path: Path) -> None:
    """Domains that only the evaluation has get numbers too; with two streams each document comes once all the same."""
    rows = [{"text": f"only here {i}", "domain": "news"} for i in range(9)] + [{"text": "no domain"}]
    path = write_jsonl(tmp_path / "news.jsonl", rows)
    settings = config(corpus, corpus / "*.jsonl", mixture=MIXTURE, streams=2)
    evaluation = dataclasses.replace(settings.evaluation, sources=(SourceConfig(path=str(path)),), rows=2, batches=5)
    data = make_data(dataclasses.replace(settings, evaluation=evaluation), pocket_tokenizer())
    assert data.domain_names == ("book", "news", "unlabelled", "web")
    shares = data.held_out([0, 1])
    assert sorted(name for share in shares for name in share.examples) == sorted(f"{path}:{i}" for i in range(10))
    batches = [share.place(None) for share in shares]
    assert {int(n) for batch in batches for n in np.unique(batch.domains[batch.segment_ids > 0])} == {1, 2}
    assert all(batch.tokens.shape == (2, 128) for batch in batches)
    share, _ = next(data.batches([0, 1]))
    batch = share.place(None)
    assert set(np.unique(batch.domains[batch.segment_ids > 0]).tolist()) == {0, 3}


def test_the_pocket_models_held_out_problems_are_evaluated_without_files() -> None:
    data = make_data(TrainConfig(data=DataConfig(rows=2, length=256, threads=0)), pocket_tokenizer())
    assert data.domain_names == ("arithmetic", "cups", "small_talk")
    held_out, again = data.held_out([0], batches=2), data.held_out([0], batches=2)
    for ours, theirs in zip(held_out, again, strict=True):
        np.testing.assert_array_equal(ours.parts[0].tokens, theirs.parts[0].tokens)
    trained = next(data.batches([0]))[0].parts[0]
    assert not np.array_equal(trained.tokens, held_out[0].parts[0].tokens)
