"""Files by index: every kind gives the same records, as the libraries that wrote them do; damage is named."""

import gzip
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from qwen3_jax.train.data.readers import open_readers
from qwen3_jax.train.settings import SourceConfig
from tests.train.data.corpora import records, write_jsonl

ROWS = records(70)


def read(path: Any, cache: Path, **more: Any) -> list[dict[str, Any]]:
    """All records, read backwards and put in order."""
    readers = open_readers(SourceConfig(path=str(path), **more), cache)
    found = [[reader[index] for index in reversed(range(len(reader)))][::-1] for reader in readers]
    for reader, rows in zip(readers, found, strict=True):
        scanned = list(reader.scan({"language"}))
        assert [row["language"] for row in scanned] == [row["language"] for row in rows] if "language" in rows[0] else 1
        assert len(scanned) == len(rows)
    return [row for rows in found for row in rows]


def test_jsonl_plain_and_compressed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    assert read(path, tmp_path / "cache") == ROWS
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read(packed, tmp_path / "cache") == ROWS
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"b\.jsonl\.gz must be a whole gzip file"):
        read(packed, tmp_path / "cache")


def test_blank_lines_and_other_line_ends_are_no_examples(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\n{"text": "a"}\r\n  \r\n{"text": "b\xc3\xa9"}')
    assert read(path, tmp_path / "cache") == [{"text": "a"}, {"text": "bé"}]


def test_an_index_is_made_again_when_the_file_changes(tmp_path: Path) -> None:
    path, cache = write_jsonl(tmp_path / "a.jsonl", ROWS[:5]), tmp_path / "cache"
    assert read(path, cache) == ROWS[:5]
    kept = {file: file.stat().st_mtime_ns for file in cache.iterdir()}
    assert read(path, cache) == ROWS[:5]
    assert {file: file.stat().st_mtime_ns for file in cache.iterdir()} == kept  # only once
    write_jsonl(path, ROWS[:9])
    assert read(path, cache) == ROWS[:9]


def test_parquet_by_row_group(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{**row, "labels": {"quality": "3"}, "messages": [{"role": "user", "content": "hi"}]} for row in ROWS]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=16)
    assert read(tmp_path / "a.parquet", tmp_path / "cache") == rows
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"b\.parquet must be a Parquet file"):
        read(tmp_path / "b.parquet", tmp_path / "cache")


def test_array_record(tmp_path: Path) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(tmp_path / "a.arrayrecord"), "group_size:1")
    for row in ROWS:
        writer.write(json.dumps(row).encode())
    writer.close()
    assert read(tmp_path / "a.arrayrecord", tmp_path / "cache") == ROWS


def test_text_by_line_paragraph_and_document(tmp_path: Path) -> None:
    text = "\n\none\ntwo\n\n\nthree é\r\nfour\n \nfive"
    (tmp_path / "a.txt").write_bytes(text.encode())
    parts = {
        "line": ["one", "two", "three é", "four", "five"],
        "paragraph": ["one\ntwo", "three é\r\nfour", "five"],
        "document": [text],
    }
    for sample_by, expected in parts.items():
        found = read(tmp_path / "a.txt", tmp_path / "cache", sample_by=sample_by)
        assert [record["text"] for record in found] == expected


def test_directories_and_globs_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for place, name in enumerate(("deep/b.jsonl", "a.jsonl", "c.jsonl")):
        write_jsonl(tmp_path / "in" / name, ROWS[place : place + 1])
    (tmp_path / "in" / "README.md").write_text("no data")
    assert read(tmp_path / "in", tmp_path / "cache") == [ROWS[1], ROWS[2], ROWS[0]]
    assert read(tmp_path / "in" / "*.jsonl", tmp_path / "cache") == [ROWS[1], ROWS[2]]


def test_mistakes_are_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "a"}\n{"text": \n[1]\n')
    (reader,) = open_readers(SourceConfig(path=str(bad)), tmp_path / "cache")
    with pytest.raises(ValueError, match=r"bad\.jsonl:1 must be JSON"):
        reader[1]
    with pytest.raises(ValueError, match=r"bad\.jsonl:2 must be a JSON object, got list"):
        reader[2]
    with pytest.raises(FileNotFoundError, match=r"none\.txt must name files"):
        open_readers(SourceConfig(path="none.txt"), tmp_path)
    (tmp_path / "a.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"a source must be .jsonl, .*, got .*a\.csv: convert it"):
        open_readers(SourceConfig(path=str(tmp_path / "a.csv")), tmp_path)
    with pytest.raises(ValueError, match=r"sample_by=document is of \.txt files"):
        open_readers(SourceConfig(path=str(bad), sample_by="document"), tmp_path)


def test_hugging_face_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="hf: sources need the package datasets, which is not installed"):
        open_readers(SourceConfig(path="hf:anything"), tmp_path)


def test_hugging_face_datasets_from_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="hf: sources are for whoever has datasets")
    arrow = pytest.importorskip("pyarrow")
    # A fingerprint of our own: datasets 5.2 can not compute one with dill 0.4 and pyarrow 26.
    rows = datasets.Dataset(arrow.Table.from_pylist(ROWS), fingerprint="rows")
    few = datasets.Dataset(arrow.Table.from_pylist(ROWS[:3]), fingerprint="few")
    rows.save_to_disk(str(tmp_path / "plain"))
    assert read(f"hf:{tmp_path / 'plain'}", tmp_path) == ROWS
    datasets.DatasetDict({"train": rows, "dev": few}).save_to_disk(str(tmp_path / "splits"))
    assert read(f"hf:{tmp_path / 'splits'}?split=dev", tmp_path) == ROWS[:3]
    with pytest.raises(ValueError, match="may set name, split and revision, got splt"):
        open_readers(SourceConfig(path="hf:x?splt=dev"), tmp_path)


def test_a_half_written_index_is_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        open_readers(SourceConfig(path=str(path)), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
