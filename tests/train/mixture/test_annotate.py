"""Annotators say what is so, plug in by entry point or path, and a stopped annotation goes on where it was."""

import importlib.metadata
import json
from pathlib import Path

import pytest

from qwen3_jax.train.mixture.annotate import annotate, available, labels_of, load_annotator, load_annotators
from qwen3_jax.train.mixture.rules import (
    duplicate_line_share,
    duplicate_ngram_share,
    form,
    gopher_quality,
    repeats,
    script,
    top_ngram_share,
    words_of,
)
from qwen3_jax.train.pocket.corpus import CorpusConfig, documents
from qwen3_jax.train.pocket.words import WORDS
from tests.qwen3_jax.cli.conftest import run as run  # the fixture

PROSE = (
    "The old lighthouse keeper climbed the narrow stairs every evening before sunset. From the top he could see "
    "fishing boats returning slowly toward the harbour, their sails catching the last orange light. He cleaned each "
    "glass panel with great care, trimmed the wick, and wrote a short entry about weather and ships into his journal."
)


def test_languages_of_the_made_corpus_are_found() -> None:
    config = CorpusConfig(documents=400, qualities={"clean": 1})
    records = list(documents(config, "train"))
    everything, nine = load_annotator("language"), load_annotator(f"language={','.join(WORDS)}")

    def share(annotator, records) -> float:
        found = [labels_of(annotator, record)["language"] == record["labels"]["language"] for record in records]
        return sum(found) / len(found)

    stories = [record for record in records if record["labels"]["domain"] in ("story", "recall")]
    assert share(everything, stories) >= 0.99  # of all 130 languages that it knows
    assert share(nine, records) >= 0.93  # digits, code and tables too
    assert labels_of(everything, {"text": "1 2 3 4"}) == {"language": "und"}


def test_gopher_shares_by_hand() -> None:
    assert words_of("It's 12 o'clock. 你好") == ["It", "s", "12", "o", "clock", "你", "好"]
    assert duplicate_line_share("ab\nab\n\ncdef") == (1 / 3, 2 / 8)
    assert top_ngram_share("a b a b c".split(), 2) == 4 / 5
    assert top_ngram_share("a b c d e".split(), 2) == 0.0
    assert duplicate_ngram_share("a b c a b".split(), 2) == 4 / 5
    assert duplicate_ngram_share("a a a a".split(), 2) == 1.0  # overlapping ones count a character once
    assert not repeats(PROSE)
    assert repeats(f"{PROSE}\n{PROSE}")
    assert repeats("A line.\nA line.\nAnother one.")
    phrase = "click here to read more about this wonderful offer today and save money"
    assert repeats(f"{phrase} {' '.join(PROSE.split()[:30])} {phrase}")  # no line comes twice


def test_characters() -> None:
    assert script("abc где") == "latin"
    assert script("где abc что") == "cyrillic"
    assert (script("你好"), script("12 + 3"), script("ひらがな")) == ("cjk", "none", "hiragana")
    assert form(PROSE) == "prose"
    assert form("गेंद कहाँ थी? वह मेज़ पर थी।") == "prose"
    assert form("3+4=7\n7*2=4\n") == "numeric"
    assert form("def f(x):\n    return {k: v for k, v in x[0].items()}") == "code"
    assert form("!!! ~~~ ??? ... hm") == "symbols"


def test_gopher_quality() -> None:
    assert gopher_quality(PROSE)
    assert gopher_quality("早上小明在花园里找他的书，小红说昨天它在车站。" * 4)
    assert not gopher_quality("Too short to be anything.")
    assert not gopher_quality("\n".join(f"- {line}" for line in PROSE.split(". ")))
    assert not gopher_quality(PROSE.replace(" ", " # ", 20))
    assert not gopher_quality("a b c d " * 20)
    assert not gopher_quality(" ".join(str(number) for number in range(1000, 1060)))
    assert not gopher_quality("\n".join(f"{line} ..." for line in PROSE.split(". ")))


def test_lengths() -> None:
    length = load_annotator("length")
    for size, bucket in ((0, "256"), (256, "256"), (257, "1024"), (65536, "65536"), (65537, "more")):
        assert labels_of(length, {"text": "x" * size}) == {"length": bucket}


class Shouts:
    name, labels = "shouts", ("shouts",)

    def annotate(self, record):
        return {"shouts": "yes" if record["text"].isupper() else "no"}


class Lies(Shouts):
    def annotate(self, record):
        return {"whispers": record["text"]}


def test_plug_ins_by_entry_point_and_by_path(monkeypatch) -> None:
    point = importlib.metadata.EntryPoint("shouting", f"{__name__}:Shouts", "qwen3_jax.annotators")
    points = importlib.metadata.EntryPoints([point])
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **asked: points.select(**asked))
    assert "shouting" in available()
    assert "language" in available()
    for spec in ("shouting", f"{__name__}:Shouts"):
        assert labels_of(load_annotator(spec), {"text": "HELLO"}) == {"shouts": "yes"}
    with pytest.raises(ValueError, match="did you mean shouting"):
        load_annotator("shoutin")
    with pytest.raises(ValueError, match=r"texts for \['shouts'\], got \{'whispers'"):
        labels_of(load_annotator(f"{__name__}:Lies"), {"text": "a"})
    with pytest.raises(ValueError, match="can be imported"):
        load_annotator("no_such_module:Thing")
    with pytest.raises(ValueError, match="must have a name, labels"):
        load_annotator("collections:Counter")
    with pytest.raises(ValueError, match="once"):
        load_annotators(["length", "length"])
    with pytest.raises(ValueError, match="got 'xx'"):
        load_annotator("language=en,xx")


def write(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_labels_are_added_kept_or_replaced(tmp_path) -> None:
    chat = {"messages": [{"role": "user", "content": "HELLO"}, {"role": "assistant", "content": "HI"}], "id": 7}
    path = write(
        tmp_path / "in.jsonl", [{"text": "quiet"}, {"text": "LOUD", "labels": {"shouts": "no", "a": "b"}}, chat]
    )
    summary = annotate([path], tmp_path / "out.jsonl", [Shouts()])
    assert [record["labels"] for record in read(tmp_path / "out.jsonl")] == [
        {"shouts": "no"}, {"shouts": "no", "a": "b"}, {"shouts": "yes"},
    ]  # fmt: skip
    assert read(tmp_path / "out.jsonl")[2] == {**chat, "labels": {"shouts": "yes"}}
    assert (summary.compared["shouts"], summary.agreed["shouts"]) == (1, 0)
    assert summary.documents["shouts"] == {"no": 2, "yes": 1}
    assert summary.characters["shouts"] == {"no": 9, "yes": 8}
    annotate([path], tmp_path / "out.jsonl", [Shouts()], overwrite=True)
    assert read(tmp_path / "out.jsonl")[1]["labels"] == {"shouts": "yes", "a": "b"}


def test_a_stopped_annotation_goes_on_and_ends_as_one_that_was_not(tmp_path) -> None:
    paths = [write(tmp_path / f"{n}.jsonl", [{"text": f"{n} {i}", "n": i} for i in range(20)]) for n in "ab"]
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    expected = annotate(paths, whole, [Shouts()])
    seen = []

    class Stops(Shouts):
        def annotate(self, record):
            seen.append(record["text"])
            if len(seen) == 28:
                raise KeyboardInterrupt
            return super().annotate(record)

    with pytest.raises(KeyboardInterrupt):
        annotate(paths, stopped, [Stops()], specs=["s"])
    assert not stopped.exists()
    partial = tmp_path / "stopped.jsonl.partial"
    with partial.open("a") as file:
        file.write('{"text": "torn')  # as a crash leaves it
    with pytest.raises(ValueError, match="must be of this command"):
        annotate(paths[:1], stopped, [Stops()], specs=["s"])
    summary = annotate(paths, stopped, [Stops()], specs=["s"])
    assert summary.resumed == 27
    assert len(seen) == 28 + 13
    assert stopped.read_bytes() == whole.read_bytes()
    assert (summary.documents, summary.characters) == (expected.documents, expected.characters)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl", "stopped.jsonl", "whole.jsonl"]


def test_the_command_shows_tables_and_json(run, tmp_path) -> None:
    path = write(tmp_path / "in.jsonl", list(documents(CorpusConfig(documents=30), "train")))
    words = ("annotate", path, "--output", tmp_path / "o.jsonl", "--annotator", "language", "--annotator", "length")
    ran = run(*words, "--json")
    found = json.loads(ran.out)
    assert found["records"] == 30
    assert sum(found["documents"]["length"].values()) == 30
    assert found["agreement"]["language"] > 0.7
    ran = run(*words)
    assert ran.status == 0
    assert "the annotator agrees with" in ran.out
    assert "30 records" in ran.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["in.jsonl"], "--output and --annotator are needed"),
        (["none.jsonl", "--output", "o", "--annotator", "length"], "none.jsonl must be a JSONL file"),
        (["in.jsonl", "--output", "in.jsonl", "--annotator", "length"], "another file than the inputs"),
        (["in.jsonl", "--output", "o", "--annotator", "lenght"], "did you mean length?"),
        (
            ["in.jsonl", "--output", "o", "--annotator", "length", "--field", "body"],
            "in.jsonl:1 must have a text in 'body'",
        ),
        (["bad.jsonl", "--output", "o", "--annotator", "length"], "bad.jsonl:2 must be a JSON object"),
        (["list.jsonl", "--output", "o", "--annotator", "length"], "labels must be a mapping"),
    ],
)
def test_a_mistake_is_one_line(run, tmp_path, monkeypatch, words, says) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.jsonl", [{"text": "a"}])
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text":\n')
    write(tmp_path / "list.jsonl", [{"text": "a", "labels": ["en"]}])
    ran = run("annotate", *words)
    assert (ran.status, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert says in ran.err
