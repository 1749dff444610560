"""The made corpus: the same from one seed, no text on both sides, true labels, long documents that ask far back."""

import collections
import dataclasses
import itertools
import json
from pathlib import Path

import pytest

from qwen3_jax.paths import pocket_path
from qwen3_jax.text.tokenizer import load_tokenizer
from qwen3_jax.train.mixture.rules import duplicate_line_share
from qwen3_jax.train.pocket import tasks
from qwen3_jax.train.pocket.corpus import DOMAINS, QUALITIES, CorpusConfig, document, documents, split_of
from qwen3_jax.train.pocket.prompts import LANGUAGES
from qwen3_jax.train.pocket.words import WORDS
from tests.qwen3_jax.cli.conftest import run as run  # the fixture

SMALL = CorpusConfig(documents=600, held_out=30)


@pytest.fixture(scope="module")
def made() -> list[dict]:
    return list(documents(SMALL, "train"))


def test_a_document_depends_on_seed_side_and_index_alone(made: list[dict]) -> None:
    assert document(SMALL, "train", 577) == made[577]
    assert list(documents(dataclasses.replace(SMALL, documents=50), "train")) == made[:50]
    assert document(dataclasses.replace(SMALL, seed=1), "train", 577) != made[577]


def test_no_text_is_on_both_sides(made: list[dict]) -> None:
    held_out = list(documents(SMALL, "held_out"))
    assert {split_of(record["text"]) for record in made} == {"train"}
    assert {split_of(record["text"]) for record in held_out} == {"held_out"}
    other = documents(dataclasses.replace(SMALL, seed=9, held_out=20), "held_out")  # nor on those of another seed
    assert not {record["text"] for record in made} & {record["text"] for record in [*held_out, *other]}


def test_every_label_occurs_about_as_often_as_asked(made: list[dict]) -> None:
    for label, known, shares in (
        ("domain", DOMAINS, SMALL.domains),
        ("quality", QUALITIES, SMALL.qualities),
        ("language", WORDS, SMALL.languages),
    ):
        counts = collections.Counter(record["labels"][label] for record in made)
        assert set(counts) == set(known)
        for value, share in shares.items():
            asked = share / sum(shares.values())
            four_errors = 4 * (asked * (1 - asked) / len(made)) ** 0.5  # 21 shares: one in a thousand draws fails
            assert counts[value] / len(made) == pytest.approx(asked, abs=four_errors)
    assert set(WORDS) == set(LANGUAGES)


def test_worked_steps_are_right() -> None:
    config = CorpusConfig(domains={"math": 1, "state": 1}, qualities={"clean": 1}, languages={"en": 1})
    for record in documents(dataclasses.replace(config, documents=40), "train"):
        for part in record["text"].strip().split("\n\n"):
            question, *steps, answer = part.split("\n")
            last = steps[-1].split("=" if record["labels"]["domain"] == "math" else ">")[1]
            assert answer == f"The answer is {last}."
            if record["labels"]["domain"] == "state":
                ball = question.split("under ")[1][0]
                for step in steps:
                    pair, state = step.split(">")
                    ball = pair.replace(ball, "") if ball in pair else ball
                    assert ball == state
            else:
                for step in steps:
                    left, right = step.split("=")
                    assert eval(left) % 10 == int(right)


def test_code_runs_and_tables_add_up() -> None:
    config = CorpusConfig(domains={"code": 1, "table": 1}, qualities={"clean": 1}, documents=40)
    for record in documents(config, "train"):
        if record["labels"]["domain"] == "code":
            exec(record["text"], {})  # its asserts hold
        else:
            for table in record["text"].strip().split("\n\n"):
                *rows, total = [line.split("|")[2].strip() for line in table.splitlines()[1:]]
                assert sum(map(int, rows)) == int(total)


def test_recall_asks_at_the_end_for_what_was_said_at_the_beginning() -> None:
    """Thousands of tokens of the pocket tokenizer apart, and nowhere between."""
    config = CorpusConfig(
        domains={"recall": 1}, qualities={"clean": 1}, languages={"en": 1}, documents=3,
        min_characters=9000, max_characters=12000, max_recall_characters=12000,
    )  # fmt: skip
    tok = load_tokenizer(pocket_path())
    for record in documents(config, "train"):
        text = record["text"]
        assert len(tok.encode(text)) > 3000
        lines = text.splitlines()
        notes = dict(line.removeprefix("Remember: the number of ").rstrip(".").split(" is ") for line in lines[:8])
        asked = [line for line in lines if line.startswith("What is the number of ")]
        assert len(asked) == 8
        assert lines[-8:] == asked
        for line in asked:
            key, value = line.removeprefix("What is the number of ").rstrip(".").split("? It is ")
            assert notes[key] == value
            assert text.index(line) - text.index(f"the number of {key}") > 7000


def test_qualities_are_what_they_are_called(made: list[dict]) -> None:
    by = collections.defaultdict(list)
    for record in made:
        by[record["labels"]["quality"]].append(record["text"])
    assert all(duplicate_line_share(text)[0] >= 0.5 for text in by["repetitive"])
    clean = document(CorpusConfig(qualities={"clean": 1}), "train", 3)["text"]
    noisy = [text for text in by["noisy"] if "  " in text or any(a == b for a, b in itertools.pairwise(text))]
    assert len(noisy) > 0.95 * len(by["noisy"])
    assert clean.count("  ") == 0


def lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines()


def test_the_command_writes_both_sides_and_the_licence(run, tmp_path) -> None:
    ran = run("corpus", tmp_path / "a", "documents=20", "held_out=5", "seed=3", "--json")
    assert ran.status == 0
    files = json.loads(ran.out)
    records, held_out = ([json.loads(line) for line in lines(files[side])] for side in ("train", "held_out"))
    assert records == list(documents(CorpusConfig(documents=20, held_out=5, seed=3), "train"))
    assert len(held_out) == 5
    assert "Apache-2.0" in (tmp_path / "a" / "LICENSE").read_text()
    assert not list((tmp_path / "a").glob("*.partial"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "a directory is needed"),
        (["documents=3"], "a directory is needed"),
        (["D", "documents=0"], "documents must be positive"),
        (["D", "dokuments=1"], "did you mean documents?"),
        (["D", "domains={poems: 1}"], "got 'poems'"),
        (["D", "qualities={clean: 0}"], "one above"),
        (["D", "max_characters=1"], "at least min_characters"),
    ],
)
def test_a_mistake_is_one_line(run, tmp_path, monkeypatch, words, says) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run("corpus", *words)
    assert (ran.status, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert says in ran.err
    assert not list(tmp_path.iterdir())


def test_held_out_problems_are_those_of_the_pocket_tasks() -> None:
    config = CorpusConfig(domains={"state": 1}, qualities={"clean": 1}, languages={"en": 1}, held_out=10)
    for record in documents(config, "held_out"):
        for part in record["text"].strip().split("\n\n"):
            question, *steps, _ = part.split("\n")
            pairs = tuple(step.split(">")[0] for step in steps)
            states = tuple(step.split(">")[1] for step in steps)
            start = question.split("under ")[1][0]
            problem = tasks.Problem(family="cups", start=start, steps=pairs, states=states)
            assert problem.split == "held_out"
