"""The README is a runbook: its commands parse, its Python runs, and what it points at exists."""

import importlib
import re
import shlex

import pytest

from tests.support import REPO

README = (REPO / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    lines = "\n".join(blocks("")).splitlines()
    return [line.split("#")[0].strip() for line in lines if line.startswith(".venv/bin/qwen3-jax ")]


@pytest.mark.parametrize("command", commands())
def test_commands_parse(command):
    _, name, *arguments = shlex.split(command)
    module = importlib.import_module(f"qwen3_jax.cli.{name}")
    assert module.parser().parse(arguments) is not None


def test_the_python_example_runs(capsys):
    (source,) = blocks("python")
    names: dict = {}
    exec(compile(source, "README.md", "exec"), names)
    thinking, direct = capsys.readouterr().out.splitlines()
    assert thinking.endswith("False stop The answer is 6.")  # 7+5=12, 2*3=6
    assert 0 < int(thinking.split()[0]) <= 24
    assert direct.startswith("0 False stop")
    assert names["out"].logits.shape[-1] == names["model"].config.vocab_size


def test_what_it_points_at_exists():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    paths = re.findall(r"`((?:tests|docs|benchmarks|configs)/[\w./-]+)`", README)
    missing = [path for path in [*links, *paths] if not (REPO / path).exists()]
    assert not missing
    assert links
    assert paths
    # A test that the README names by its function is there.
    for path, name in re.findall(r"`(tests/[\w./-]+\.py)::(\w+)`", README):
        assert f"def {name}(" in (REPO / path).read_text(encoding="utf-8"), (path, name)
