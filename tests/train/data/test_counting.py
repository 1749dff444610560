"""What is counted once about files: kept in parts, so that neither a stop nor a kill loses it."""

import importlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from qwen3_jax.cli import main
from qwen3_jax.paths import pocket_path
from qwen3_jax.text.tokenizer import load_tokenizer
from qwen3_jax.train.data import tables
from qwen3_jax.train.data.examples import Encoder, cut
from qwen3_jax.train.data.readers import open_readers
from qwen3_jax.train.data.token_shards import open_shards
from qwen3_jax.train.data.tokenize import tokenize
from qwen3_jax.train.settings import SourceConfig
from qwen3_jax.train.stop import Stop, Stopped
from tests.support import REPO
from tests.train.data.corpora import records, write_jsonl
from tests.train.pocket_fixtures import MODEL

TABLES = importlib.import_module("qwen3_jax.train.data.tables")
ROWS = [row if number % 7 else {"text": row["text"]} for number, row in enumerate(records(95))]


def table(path: Path, cache: Path) -> tables.Table:
    source = SourceConfig(path=str(path))
    (reader,) = open_readers(source, cache)
    encoder = Encoder(load_tokenizer(pocket_path()), source)
    return tables.make_table(reader, encoder, ["language", "domain"], digests=True, length=16, cache=cache)


def write(path: Path) -> Path:
    if path.suffix == ".parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist(ROWS), path, row_group_size=17)
        return path
    return write_jsonl(path, ROWS)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_count_that_was_killed_goes_on_and_ends_the_same(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / f"a.{kind}")
    whole = table(path, tmp_path / "whole")
    monkeypatch.setattr(TABLES, "_PART", 10)
    counted: list[Any] = []
    documents = Encoder.documents

    def count(self: Encoder, record: Any) -> Any:
        if len(counted) == 34:
            raise KeyboardInterrupt
        counted.append(record)
        return documents(self, record)

    monkeypatch.setattr(Encoder, "documents", count)
    with pytest.raises(KeyboardInterrupt):
        table(path, tmp_path / "cache")
    counted.clear()
    monkeypatch.setattr(Encoder, "documents", lambda *words: counted.append(words) or documents(*words))
    found = table(path, tmp_path / "cache")
    assert len(counted) == len(ROWS) - 30  # three parts were finished
    assert found.values == whole.values
    for name in ("language", "domain"):
        np.testing.assert_array_equal(found.labels[name], whole.labels[name])
    for name in ("digests", "tokens", "sizes"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    assert len(list((tmp_path / "cache").glob("*.npz"))) == 1  # the parts are gone


@pytest.mark.parametrize("kind", ["text", "chat"])
def test_tokens_made_ahead_are_counted_without_reading_them(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers as from the documents, also for rows too short to cut into."""
    rows: list[Any] = [row | {"text": row["text"] * (1 + n % 3)} for n, row in enumerate(records(60))]
    if kind == "chat":
        say = [{"role": "user", "content": "hi"}]
        rows = [{"messages": [*say, {"role": "assistant", "content": row["text"]}], "domain": "x"} for row in rows]
    source = SourceConfig(path=str(write_jsonl(tmp_path / "in.jsonl", rows)), kind=kind)
    tok = load_tokenizer(pocket_path())
    tokenize([source], tok, tmp_path / "out", labels=["domain"], cache=tmp_path)
    made = SourceConfig(path=str(tmp_path / "out"), kind="tokens")
    (shard,), encoder = open_shards(made, tok), Encoder(tok, made)
    stored = [shard[index] for index in range(len(shard))]
    for length in (1, 2, 17, 40):
        pieces = [[len(piece.tokens) for piece in cut(*encoder.documents(record), length)] for record in stored]
        expected = [sum(size for size in sizes if size <= length) for sizes in pieces]
        with monkeypatch.context() as patch:
            patch.setattr(Encoder, "documents", None)
            patch.setattr(type(shard), "__getitem__", lambda *_: pytest.fail("it was read"))
            found = tables.make_table(
                shard, encoder, ["domain"], digests=False, length=length, cache=tmp_path / f"{length}"
            )
        assert found.sizes.tolist() == expected
        assert found.tokens.tolist() == [len(record["tokens"]) for record in stored]
        assert [found.values["domain"][code] for code in found.labels["domain"]] == [row["domain"] for row in rows]


def test_sigterm_while_documents_are_counted_ends_with_0_at_once(tmp_path: Path) -> None:
    """And the next start goes on from what was counted."""
    rows = itertools.cycle(records(3000, longest=120))
    path = write_jsonl(tmp_path / "in.jsonl", list(itertools.islice(rows, 200_000)))
    settings = {
        "model": {**MODEL, "vocab_size": load_tokenizer(pocket_path()).vocab_size},
        "tokenizer": {"path": str(pocket_path())},
        "data": {
            "sources": [{"path": str(path)}],
            "lengths": [{"share": 1.0}],
            "cache": str(tmp_path / "cache"),
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    program = [sys.executable, "-m", "qwen3_jax.cli", "train", str(tmp_path / "config.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(REPO), "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(
        [*program, f"run_dir={tmp_path / 'run'}"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "cache").glob("*.0.npz")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - asked < 10  # a second on a quiet machine
    assert (process.returncode, err) == (0, "")
    assert out.startswith("asked to stop before the first step: what was counted of the data is kept")
    assert list((tmp_path / "cache").glob("*.0.npz"))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_stop_is_at_once_in_its_block_only_and_whatever_the_work_makes_of_it() -> None:
    with Stop() as stop:
        with pytest.raises(Stopped), stop.at_once():
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped), stop.at_once():  # it came before
            raise AssertionError("not reached")

    def swallow() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException:
            raise RuntimeError("a library's word for it") from None

    with Stop() as stop:
        with pytest.raises(Stopped), stop.at_once():
            swallow()
        assert stop.asked(1)
    with Stop() as stop:
        with stop.at_once():
            pass
        os.kill(os.getpid(), signal.SIGTERM)  # noted only
        assert stop.asked(1)
    with pytest.raises(KeyError), Stop() as stop, stop.at_once():
        raise KeyError


def test_a_run_that_is_asked_before_its_first_step_has_nothing_to_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": {**MODEL, "vocab_size": 880}}))
    run = importlib.import_module("qwen3_jax.train.run")
    monkeypatch.setattr(run, "claim", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["train", str(tmp_path / "config.yaml"), f"run_dir={tmp_path / 'run'}"]) == 0
    assert capsys.readouterr().out.startswith("asked to stop before the first step")
    assert json.dumps(sorted(path.name for path in (tmp_path / "run").iterdir())) == '[".lock"]'
