"""A run goes on only with the data it began with, wherever the files lie now."""

import importlib
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from qwen3_jax.cli import main
from qwen3_jax.paths import pocket_path
from qwen3_jax.text.tokenizer import load_tokenizer
from qwen3_jax.train.data.identity import IDENTITY, claim_data, sampled
from qwen3_jax.train.data.tokenize import tokenize
from qwen3_jax.train.settings import SourceConfig
from tests.train.data.corpora import config, records, write_jsonl
from tests.train.pocket_fixtures import MODEL

ROWS = records(300)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    write_jsonl(tmp_path / "in" / "a.jsonl", ROWS[:200])
    write_jsonl(tmp_path / "in" / "b.jsonl", ROWS[200:])
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    return tmp_path


def claim(tmp_path: Path, place: str = "in", **more: Any) -> None:
    claim_data(tmp_path / "run", config(tmp_path, tmp_path / place, **more))


def save(tmp_path: Path) -> None:
    """What a checkpoint looks like."""
    (tmp_path / "run" / "checkpoints" / "10").mkdir()


def test_a_run_whose_file_was_reordered_is_refused_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "in.jsonl", ROWS)
    settings = {
        "model": {**MODEL, "vocab_size": load_tokenizer(pocket_path()).vocab_size},
        "tokenizer": {"path": str(pocket_path())},
        "data": {"sources": [{"path": str(path)}], "cache": str(tmp_path / "cache")},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    words = ["train", str(tmp_path / "config.yaml"), f"run_dir={tmp_path / 'run'}"]

    def trains(*_: Any) -> None:
        (tmp_path / "run" / "checkpoints" / "10").mkdir(parents=True, exist_ok=True)
        raise FloatingPointError("it trained")

    monkeypatch.setattr(importlib.import_module("qwen3_jax.train.run"), "train", trains)
    assert main(words) == 1
    found = json.loads((tmp_path / "run" / IDENTITY).read_text())
    assert found["documents"] == [300]
    assert [(file["name"], file["size"]) for file in found["files"]] == [(str(path), path.stat().st_size)]
    os.utime(path, (1, 1))
    assert main(words) == 1  # the time does not count
    assert "it trained" in capsys.readouterr().err
    write_jsonl(path, ROWS[::-1])
    assert main(words) == 2
    assert capsys.readouterr().err == (
        f"error: {path} must be the file that this run began with, got other contents: put the old file back, or "
        "choose another run_dir\n"
    )


def test_what_differs_is_named(corpus: Path) -> None:
    claim(corpus)
    save(corpus)
    claim(corpus)
    a, b, c = (corpus / "in" / f"{name}.jsonl" for name in "abc")
    whole = b.read_text()
    b.write_text(whole + whole[:10])
    with pytest.raises(ValueError, match=rf"b\.jsonl must be .* got {len(whole.encode()) + 10:,} bytes, not "):
        claim(corpus)
    b.write_text(whole)
    write_jsonl(corpus / "in" / "aa.jsonl", ROWS[:3])
    with pytest.raises(ValueError, match=r"the 2 files that this run began with, got 3 \(.*aa\.jsonl is new\)"):
        claim(corpus)
    (corpus / "in" / "aa.jsonl").unlink()
    text = a.read_text()
    a.unlink()
    with pytest.raises(ValueError, match=r"began with, got 1 \(.*a\.jsonl is missing\)"):
        claim(corpus)
    a.write_text(text)
    claim(corpus)
    found = json.loads((corpus / "run" / IDENTITY).read_text())
    (corpus / "run" / IDENTITY).write_text(json.dumps(found | {"documents": [200, 99]}))
    with pytest.raises(ValueError, match=r"b\.jsonl must be .*, got 100 documents, not 99: put the old file back"):
        claim(corpus)
    assert not c.exists()


def test_files_may_move_and_nothing_is_held_to_what_was_not_trained_on(corpus: Path) -> None:
    claim(corpus)
    write_jsonl(corpus / "in" / "a.jsonl", ROWS[:150])  # corrected before anything was saved
    claim(corpus)
    assert json.loads((corpus / "run" / IDENTITY).read_text())["documents"] == [150, 100]
    save(corpus)
    (corpus / "in").rename(corpus / "moved")
    claim(corpus, "moved")
    evaluation = config(corpus, corpus / "moved" / "a.jsonl").data.sources
    settings = config(corpus, corpus / "moved")
    object.__setattr__(settings, "evaluation", type(settings.evaluation)(sources=evaluation))
    claim_data(corpus / "run", settings)  # what is evaluated may change


def test_large_files_are_sampled_at_both_ends_and_between(tmp_path: Path) -> None:
    path = tmp_path / "large"
    raw = np.random.default_rng(0).integers(256, size=1_000_000, dtype=np.uint8)
    path.write_bytes(raw.tobytes())
    size, digest = sampled(path, 64)
    assert size == len(raw)
    starts = [number * (size - 4096) // 63 for number in range(64)]
    for at in (0, size - 1, starts[1], starts[40] + 4095):
        changed = raw.copy()
        changed[at] ^= 1
        path.write_bytes(changed.tobytes())
        assert sampled(path, 64)[1] != digest
    path.write_bytes(np.random.default_rng(1).permutation(raw.reshape(-1, 100)).tobytes())  # lines in another order
    assert sampled(path, 64)[1] != digest


def test_tokens_made_ahead(corpus: Path) -> None:
    tok, out = load_tokenizer(pocket_path()), corpus / "out"
    sources = [{"path": str(out), "kind": "tokens"}]
    tokenize([SourceConfig(path=str(corpus / "in"))], tok, out, shard_records=150, cache=corpus)
    claim(corpus, sources=sources)
    assert json.loads((corpus / "run" / IDENTITY).read_text())["documents"] == [150, 150]
    save(corpus)
    claim(corpus, sources=sources)
    tokens = np.load(out / "shard-00001" / "tokens.npy")
    tokens[0] += 1
    np.save(out / "shard-00001" / "tokens.npy", tokens)
    with pytest.raises(ValueError, match="shard-00001 must be the file that this run began with, got other contents"):
        claim(corpus, sources=sources)


def test_hugging_face_datasets_by_fingerprint(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dataset(list[Any]):
        _fingerprint = "f1"

    datasets = types.SimpleNamespace(load_dataset=lambda *_, **__: Dataset(ROWS[:9]))
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    claim(corpus, sources=[{"path": "hf:old/name"}])
    save(corpus)
    claim(corpus, sources=[{"path": "hf:new/name"}])
    monkeypatch.setattr(Dataset, "_fingerprint", "f2")
    with pytest.raises(ValueError, match="new/name must be the file that this run began with, got other contents"):
        claim(corpus, sources=[{"path": "hf:new/name"}])
