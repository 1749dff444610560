"""Malformed records end the run by name, or are left out, named once and counted, and left out again on resume."""

import dataclasses
import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from qwen3_jax.sharding.launch import processes
from qwen3_jax.train.data import BadRecord, Data, make_data, sample_texts
from qwen3_jax.train.data.examples import Encoder
from qwen3_jax.train.data.tables import label_of
from qwen3_jax.train.settings import EvaluationConfig, SourceConfig
from tests.train.data.corpora import config, records, write_jsonl
from tests.train.pocket_fixtures import pocket_tokenizer

ROWS = records(80)
TORN, NO_TEXT = 17, 40  # a line that is no JSON, and one whose text is a number
MIXTURE = {"by": ["language"], "weights": [{"labels": {"language": name}} for name in ("de", "en", "zh")]}


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    lines = [json.dumps(row) for row in ROWS]
    lines[TORN], lines[NO_TEXT] = '{"text": "torn', json.dumps({**ROWS[NO_TEXT], "text": 5})
    (tmp_path / "bad.jsonl").write_text("\n".join(lines))
    return tmp_path


def make(bad: Path, **data: Any) -> Data:
    return make_data(config(bad, bad / "bad.jsonl", **data), pocket_tokenizer())


def test_by_default_the_first_ends_the_run_with_its_file_and_place(bad: Path) -> None:
    with pytest.raises(
        BadRecord, match=r"bad\.jsonl:17 must be JSON, .*: correct it \(data\.on_bad_record=skip leaves"
    ):
        make(bad)
    data = make(bad, domain="")  # no labels, so nothing is read before it is asked for
    with pytest.raises(BadRecord, match=r"bad\.jsonl:(17 must be JSON|40: text must be text, got int)"):
        list(itertools.islice(data.batches([0]), 20))
    with pytest.raises(BadRecord, match=r"bad\.jsonl:40: text must be text, got int: .*on_bad_record=skip"):
        data.documents.pieces(NO_TEXT)


@pytest.mark.parametrize(
    "how",
    [
        {"domain": ""},  # found while it trains
        {"domain": "", "threads": 2},
        {"domain": "", "streams": 2},
        {},  # one of them when the labels are read, the other while it trains
        {"mixture": MIXTURE},
        {"lengths": [{"share": 1.0}]},  # both when documents are counted
        {"held_out": 0.2},
    ],
)
def test_left_out_named_once_counted_and_left_out_again(bad: Path, how: dict[str, Any]) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        data = make(bad, on_bad_record="skip", **how)
        streams = range(data.config.data.streams)
        made = list(itertools.islice(data.batches(streams), 30))
    said = [str(warning.message) for warning in told]
    for place, what in ((TORN, "must be JSON"), (NO_TEXT, ": text must be text, got int")):
        (line,) = (text for text in said if f"bad.jsonl:{place}{' ' if place == TORN else ''}{what}" in text)
        assert line.startswith("a malformed record is left out: ")
    assert len([text for text in said if "nothing to learn" in text]) == 0
    seen = {int(name.rpartition(":")[2]) for share, _ in made for name in share.examples}
    held_out = set(data.held_out_members.tolist()) if isinstance(data.held_out_members, np.ndarray) else set()
    assert seen == set(range(len(ROWS))) - {TORN, NO_TEXT} - held_out
    assert not held_out & {TORN, NO_TEXT}
    report = data.report(made[-1][1])
    assert (report.malformed, report.dropped) == (2, 0)
    assert "2 malformed records left out" in str(report)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        again = make(bad, on_bad_record="skip", **how)
        for cut in (1, 11):
            places = json.loads(json.dumps([made[cut - 1][1][stream] for stream in streams]))
            for (ours, _), (theirs, _) in zip(again.batches(streams, places), made[cut:], strict=False):
                assert ours.examples == theirs.examples


def test_a_run_that_a_record_ended_goes_on_with_skip(bad: Path) -> None:
    """From the place before it, to what a run that skipped from the beginning sees."""
    made: list[Any] = []
    with pytest.raises(BadRecord):
        made.extend(make(bad, domain="", lookahead=1.0, rows=1, length=32).batches([0]))
    assert len(made) > 2  # list.extend keeps what came before the error
    skipping = make(bad, domain="", lookahead=1.0, rows=1, length=32, on_bad_record="skip")
    with pytest.warns(UserWarning, match="a malformed record is left out"):
        whole = list(itertools.islice(skipping.batches([0]), 30))
    after = list(itertools.islice(skipping.batches([0], [made[-1][1][0]]), 30 - len(made)))
    assert [share.examples for share, _ in made + after] == [share.examples for share, _ in whole]


def test_only_a_few_are_named_and_a_file_of_nothing_else_is_refused(tmp_path: Path) -> None:
    rows = [{**row, "text": None} if number % 2 else row for number, row in enumerate(records(60))]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        data = make_data(config(tmp_path, path, on_bad_record="skip", domain=""), pocket_tokenizer())
        *_, (_, places) = itertools.islice(data.batches([0]), 10)
    said = [str(warning.message) for warning in told]
    assert len(said) == len(set(said)) == 11
    assert said[-1] == "more malformed records are left out, and not named any more"
    assert data.report(places).malformed == 30
    write_jsonl(path, rows[1::2])
    with pytest.raises(ValueError, match="must hold examples, got 30 malformed records"):
        make_data(config(tmp_path, path, on_bad_record="skip", lengths=[{"share": 1.0}]), pocket_tokenizer())


def test_evaluation_and_the_tokenizers_text_leave_them_out_too(bad: Path) -> None:
    good = write_jsonl(bad / "good.jsonl", ROWS[:20])
    settings = config(bad, good, on_bad_record="skip")
    evaluation = EvaluationConfig(sources=(SourceConfig(path=str(bad / "bad.jsonl")),), batches=30)
    with pytest.warns(UserWarning, match="malformed"):
        data = make_data(dataclasses.replace(settings, evaluation=evaluation), pocket_tokenizer())
    with pytest.warns(UserWarning, match="text must be text, got int"):
        shares = data.held_out([0])
    seen = [int(name.rpartition(":")[2]) for share in shares for name in share.examples]
    assert sorted(seen) == sorted(set(range(len(ROWS))) - {TORN, NO_TEXT})
    skip = config(bad, bad / "bad.jsonl", on_bad_record="skip").data
    with pytest.warns(UserWarning, match="a malformed record is left out"):
        texts = list(sample_texts(skip, 1000, 0))
    assert texts == [row["text"] for number, row in enumerate(ROWS) if number not in (TORN, NO_TEXT)]
    with pytest.raises(BadRecord, match=r"bad\.jsonl:17 must be JSON"):
        list(sample_texts(dataclasses.replace(skip, on_bad_record="stop"), 1000, 0))


@pytest.mark.parametrize("tokens", [["a"], {"a": 1}, None, 3, "abc", [[1]], [2**40], [-1], [None]])
def test_tokens_that_are_none_are_a_users_mistake(tokens: Any) -> None:
    with pytest.raises(ValueError, match="tokens"):
        Encoder(pocket_tokenizer(), SourceConfig(kind="tokens")).documents({"tokens": tokens})


def test_other_malformed_values_are_a_users_mistake() -> None:
    with pytest.raises(ValueError, match="labels must be a mapping, got int"):
        label_of({"labels": 3}, "domain", {})
    with pytest.raises(ValueError, match="text must be JSON values"):
        Encoder(pocket_tokenizer(), SourceConfig()).digest({"text": b"x"})


def test_every_process_of_a_job_hears_of_it_as_a_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    def fails() -> None:
        raise BadRecord("a.jsonl:3 must be JSON")

    def gather(value: Any) -> list[Any]:
        told.append(value)
        return told[:1]

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "gather", gather)
    with pytest.raises(BadRecord):
        processes.first_does(fails)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(ValueError, match=r"a\.jsonl:3 must be JSON \(on process 0\)"):
        processes.first_does(fails)
