"""Files are whole or not there, whatever fails; records are read one at a time and named when they are none."""

import json
import os
from pathlib import Path

import pytest

from qwen3_jax.files import read_jsonl, replace_text, replacing, write_json, written_beside


def contents(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


def test_a_file_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "a.json"
    replace_text(path, "old")
    write_json(path, {"a": [1, "ä"]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [1, "ä"]}
    with replacing(tmp_path / "b.npy") as partial:
        assert partial.suffix == ".npy"  # writers that look at it, or add one
        partial.write_bytes(b"b")
        assert not (tmp_path / "b.npy").exists()
    assert set(contents(tmp_path)) == {"a.json", "b.npy"}


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(where, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError("disk full")

    (tmp_path / "a.txt").write_text("old")
    monkeypatch.setattr(os, where, fail)
    with pytest.raises(OSError, match="disk full"):
        replace_text(tmp_path / "a.txt", "new")
    assert contents(tmp_path) == {"a.txt": "old"}


def test_an_error_in_the_block_leaves_the_old_file(tmp_path):
    (tmp_path / "a.txt").write_text("old")

    def interrupted() -> None:
        with written_beside(tmp_path / "a.txt") as file:
            file.write("half of the ne")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert contents(tmp_path) == {"a.txt": "old"}


def test_records_are_named_by_their_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n[2]\n')
    records = read_jsonl(path)
    assert next(records) == {"a": 1}
    with pytest.raises(ValueError, match=r"a\.jsonl:3 must be a JSON object, got list"):
        next(records)
    path.write_text("{oops\n")
    with pytest.raises(ValueError, match=r"a\.jsonl:1 must be a JSON object, it is not JSON"):
        next(read_jsonl(path))
    with pytest.raises(FileNotFoundError, match="must be a JSONL file"):
        next(read_jsonl(tmp_path / "none.jsonl"))
