"""The guide's examples run and print what it says."""

import doctest
import re
from pathlib import Path
from typing import Any

import pytest

from qwen3_jax.cli.tokenize import parser
from qwen3_jax.paths import pocket_path
from qwen3_jax.text.tokenizer import load_tokenizer
from qwen3_jax.train import load_config, make_data
from tests.support import REPO
from tests.train.data.corpora import records, write_jsonl

GUIDE = (REPO / "docs" / "guides" / "data.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, flags=re.DOTALL)


CHAT = [
    {"role": "user", "content": "3+4 = ?"},
    {"role": "assistant", "content": "The answer is 7.", "reasoning_content": "3+4=7"},
    {"role": "user", "content": "Thank you /no_think"},
    {"role": "assistant", "content": "You are welcome."},
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with what the examples read."""
    (tmp_path / "corpus").mkdir()
    write_jsonl(tmp_path / "corpus" / "a.jsonl", [row for row in records(150) if row["language"] != "zh"])
    (tmp_path / "corpus" / "notes.txt").write_text("the ball is under B\nwhere is it\n" * 20)
    write_jsonl(tmp_path / "chat.jsonl", [{"messages": CHAT}])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("name", "number", "place"), [("mixture", 0, 0), ("chat", 1, 2)])
def test_examples_print_what_the_guide_says(
    here: Path, capsys: pytest.CaptureFixture[str], name: str, number: int, place: int
) -> None:
    (here / f"{name}.yaml").write_text(blocks("yaml")[place])
    names: dict[str, Any] = {"make_data": make_data, "load_config": load_config, "tok": load_tokenizer(pocket_path())}
    exec(compile(blocks("python")[number], "docs/guides/data.md", "exec"), names)
    said, expected = capsys.readouterr().out, blocks("text")[number]
    assert doctest.OutputChecker().check_output(
        expected + "...\n" if number == 0 else expected, said, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    ), said
    if name == "mixture":
        assert names["batch"].tokens.shape == (4, 64)


def test_its_configurations_and_command_parse(tmp_path: Path) -> None:
    for text in blocks("yaml"):
        (tmp_path / "a.yaml").write_text(text)
        load_config(tmp_path / "a.yaml")
    (command,) = re.findall(r"^qwen3-jax tokenize .*$", GUIDE, flags=re.MULTILINE)
    assert parser().parse(command.split()[2:]).label == ["language", "domain"]
