"""Tokens made ahead: the same batches as on the fly, and the same bytes whenever the making was killed."""

import dataclasses
import hashlib
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

from qwen3_jax.cli import main
from qwen3_jax.paths import pocket_path
from qwen3_jax.text.tokenizer import load_tokenizer
from qwen3_jax.train.data import make_data, sample_texts
from qwen3_jax.train.data.examples import Document, cut
from qwen3_jax.train.data.tokenize import tokenize
from qwen3_jax.train.initial import make_tokenizer
from qwen3_jax.train.settings import SourceConfig, TokenizerConfig
from tests.support import REPO
from tests.train.data.corpora import config, records, write_jsonl
from tests.train.pocket_fixtures import pocket_tokenizer

CHAT = [
    {
        "messages": [
            {"role": "user", "content": f"question {number}"},
            {"role": "assistant", "content": "yes " * (number % 5), "reasoning_content": "hm"},
            {"role": "user", "content": "and now?"},
            {"role": "assistant", "content": "no"},
        ],
        "labels": {"domain": "chat", "field": "talk" if number % 2 else "maths"},
    }
    for number in range(40)
]


def test_documents_longer_than_a_row_are_cut_and_every_token_is_learnt_once() -> None:
    for size, length in itertools.product(range(1, 30), (2, 3, 7, 30)):
        document = Document(np.arange(size, dtype=np.int32), np.ones(size, bool), False)
        pieces = cut(document, length)
        assert max(len(piece.tokens) for piece in pieces) <= length
        targets = [token for piece in pieces for token in piece.tokens[1:].tolist()]
        assert targets == list(range(1, size))
        pairs = {pair for piece in pieces for pair in itertools.pairwise(piece.tokens.tolist())}
        assert all(b == a + 1 for a, b in pairs)
    whole = Document(np.arange(9, dtype=np.int32), np.arange(9) > 4, True)
    assert cut(whole, 4) == [whole]


@pytest.mark.parametrize("kind", ["text", "chat"])
def test_batches_are_those_of_tokenising_on_the_fly(kind: str, tmp_path: Path) -> None:
    tok = load_tokenizer(pocket_path())
    path = write_jsonl(tmp_path / "in.jsonl", CHAT if kind == "chat" else records(90, longest=300))
    source = SourceConfig(path=str(path), kind=kind)
    labels = ["domain"] if kind == "chat" else ["language", "domain"]
    done = tokenize([source], tok, tmp_path / "out", labels=labels, shard_records=25, workers=2, cache=tmp_path)
    assert done.shards == (2 if kind == "chat" else 4)
    plain = make_data(config(tmp_path, sources=[{"path": str(path), "kind": kind}], length=64), tok)
    ahead = make_data(config(tmp_path, sources=[{"path": str(tmp_path / "out"), "kind": "tokens"}], length=64), tok)
    assert ahead.domain_names == plain.domain_names
    if kind == "text":  # documents are the same one by one, so all is the same
        for (ours, _), (theirs, _) in itertools.islice(zip(ahead.batches([0]), plain.batches([0]), strict=True), 10):
            for name in ("tokens", "targets", "loss_mask", "segment_ids", "domains"):
                np.testing.assert_array_equal(getattr(ours.parts[0], name), getattr(theirs.parts[0], name))
    else:  # a conversation's turns are documents of their own, so another order of the same ones
        pieces = [
            sorted((list(piece.tokens), list(piece.loss)) for i in range(count) for piece in data.documents.pieces(i))
            for data, count in ((plain, 40), (ahead, 80))
        ]
        assert pieces[0] == pieces[1]
        assert any(not all(loss) for _, loss in pieces[0])


def digest(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_killed_and_started_again_the_bytes_are_the_same(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in.jsonl", records(4000, longest=120))
    words = ["tokenize", str(path), "--tokenizer", str(pocket_path()), "--shard-records", "80", "--output"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPO),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "JAX_PLATFORMS": "cpu",
    }
    program = [sys.executable, "-m", "qwen3_jax.cli", *words, str(tmp_path / "killed")]
    process = subprocess.Popen(program, env=environment, stdout=subprocess.DEVNULL)
    shards = tmp_path / "killed"
    deadline = time.monotonic() + 120
    while len(list(shards.glob("shard-*"))) < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in shards.glob("shard-*")}
    assert 3 <= len(finished) < 50, "it was to be killed in the middle"
    (shards / ".shard-00049.partial").mkdir(exist_ok=True)  # what a kill may leave
    (shards / ".shard-00049.partial" / "tokens.npy").write_bytes(b"torn")
    assert subprocess.run(program, env=environment, stdout=subprocess.DEVNULL, check=False).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in finished} == finished  # not done again
    done = tokenize(
        [SourceConfig(path=str(path))],
        load_tokenizer(pocket_path()),
        tmp_path / "whole",
        shard_records=80,
        cache=tmp_path,
    )
    assert (done.shards, done.done_before) == (50, 0)
    assert digest(shards) == digest(tmp_path / "whole")
    assert not list(shards.glob(".*"))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_jsonl(tmp_path / "in.jsonl", records(30))
    words = ["tokenize", str(path), "--tokenizer", str(pocket_path()), "--output", str(tmp_path / "out"), "--json"]
    assert main(words) == 0
    first: dict[str, Any] = json.loads(capsys.readouterr().out)
    tok = load_tokenizer(pocket_path())
    assert first["documents"] == 30
    assert first["tokens"] == sum(len(tok.encode(row["text"])) + 1 for row in records(30))
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["done_before"] == 1
    for more, says in (
        ([*words, "--kind", "chat"], "must be empty or hold this work, got one that differs in inputs"),
        ([*words[:-1], "--shard-records", "0"], "--shard-records must be at least 1"),
        ([*words[:5], str(tmp_path), "--json"], "must be an empty or new directory"),
    ):
        assert main(more) == 2
        assert says in capsys.readouterr().err
    with pytest.raises(ValueError, match="must be made with this run's tokenizer, got another"):
        make_data(config(tmp_path, sources=[{"path": str(tmp_path / "out"), "kind": "tokens"}]), pocket_tokenizer())
    with pytest.raises(ValueError, match="must be read with kind: tokens"):
        make_data(config(tmp_path, sources=[{"path": str(tmp_path / "out")}]), tok)


def test_nothing_to_do_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    empty, path = tmp_path / "empty.jsonl", write_jsonl(tmp_path / "in.jsonl", records(30))
    empty.write_text("\n")
    words = ["--tokenizer", str(pocket_path()), "--output", str(tmp_path / "out")]
    assert main(["tokenize", str(empty), *words]) == 2
    assert capsys.readouterr().err == f"error: the inputs must hold examples, got none in {empty}: correct them\n"
    assert not (tmp_path / "out").exists()
    command = [
        "tokenize",
        str(empty),
        str(path),
        *words,
        "--label",
        "domain",
        "--label",
        "lang",
        "--shard-records",
        "9",
    ]
    for _ in range(2):  # also where all shards were there before
        assert main(command) == 0
        assert capsys.readouterr().err == "warning: no record has the label lang; there are: domain, language\n"


def test_a_tokenizer_is_made_from_the_text_of_the_sources(tmp_path: Path) -> None:
    """Every example's text where all are asked for, the same sample for the same seed, messages and their thinking."""
    rows = records(50)
    text, chat = write_jsonl(tmp_path / "a.jsonl", rows), write_jsonl(tmp_path / "b.jsonl", CHAT[:3])
    sources = [{"path": str(text)}, {"path": str(chat), "kind": "chat"}]
    data = config(tmp_path, sources=sources).data
    found = list(sample_texts(data, 1000, 0))
    assert found[:50] == [row["text"] for row in rows]
    assert found[50:58] == ["user", "question 0", "assistant", "hm", "", "user", "and now?", "assistant"]
    some = list(sample_texts(data, 10, 1))
    assert some == list(sample_texts(data, 10, 1)) != list(sample_texts(data, 10, 2))
    run = dataclasses.replace(config(tmp_path, text), tokenizer=TokenizerConfig(vocab_size=400, corpus_size=50))
    tok = make_tokenizer(tmp_path / "tokenizer", run)
    assert tok.decode(tok.encode(rows[0]["text"])) == rows[0]["text"]
    assert len(tok.encode("under")) == 1  # a word of this corpus, and not of the pocket tasks' alone
    with pytest.raises(ValueError, match=r"tokenizer\.path must name the tokenizer that tokens was made with"):
        list(sample_texts(config(tmp_path, sources=[{"path": "tokens", "kind": "tokens"}]).data, 1, 0))
