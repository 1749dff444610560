"""Files over files: what is merged, what is replaced, how a model is named, and mistakes."""

from pathlib import Path

import pytest

from qwen3_jax.releases import load_model_config
from qwen3_jax.train.config import load_config
from qwen3_jax.train.parsing import apply, merge, read_overlays
from tests.support import REPO


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_sections_are_merged_and_anything_else_is_replaced() -> None:
    base = {"steps": 9, "data": {"rows": 4, "tasks": {"families": ["a", "b"]}}, "lora": {"r": 4}}
    over = {"data": {"rows": 2, "tasks": {"families": ["c"]}}, "lora": None}
    expected = {"steps": 9, "data": {"rows": 2, "tasks": {"families": ["c"]}}, "lora": None}
    assert merge(base, over) == expected
    assert base["data"]["rows"] == 4  # nothing is changed in place


def test_a_base_is_found_beside_its_file_and_may_have_one_itself(tmp_path: Path) -> None:
    write(tmp_path / "a" / "first.yaml", "{steps: 9, seed: 1, data: {rows: 4, length: 64}}")
    write(tmp_path / "a" / "second.yaml", "{base: first.yaml, seed: 2, data: {length: 32}}")
    third = write(tmp_path / "b" / "third.yaml", "{base: ../a/second.yaml, data: {streams: 2}}")
    assert read_overlays(third) == {"steps": 9, "seed": 2, "data": {"rows": 4, "length": 32, "streams": 2}}
    config = load_config(third, ["data.rows=8", "steps=3"])
    assert (config.steps, config.seed, config.data.rows, config.data.length) == (3, 2, 8, 32)


def test_a_dotted_key_reaches_into_sections() -> None:
    assert apply({"data": {"rows": 4, "length": 8}}, {"data.rows": 2, "a.b.c": 1, "data": {"streams": 3}}) == {
        "data": {"rows": 2, "length": 8, "streams": 3},
        "a": {"b": {"c": 1}},
    }


def test_a_model_by_name_with_keys_that_change(tmp_path: Path) -> None:
    path = write(tmp_path / "big.yaml", "model: {base: qwen3-0.6b, rope_theta: 10000.0}")
    release = load_model_config("qwen3-0.6b").to_hf()
    assert load_config(path).model == release | {"rope_theta": 10000.0}
    other = load_config(path, ["model.base=qwen3-30b-a3b"]).model
    assert (other["num_experts"], other["rope_theta"]) == (128, 10000.0)
    with pytest.raises(FileNotFoundError, match="did you mean qwen3-8b"):
        load_config(path, ["model.base=qwen3-8bb"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: other.yaml", "other.yaml must exist"),
        ("base: self.yaml", "must not be its own base"),
        ("base: [a.yaml]", "must be the path of a YAML file"),
        ("{base: good.yaml, optimizer: {learning_rat: 1}}", "did you mean optimizer.learning_rate?"),
        ("{base: good.yaml, steps: {a: 1}}", "steps must be of type int"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path / "good.yaml", "steps: 3")
    path = write(tmp_path / "self.yaml", text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_config(path)


def test_an_override_that_is_not_yaml_is_refused() -> None:
    with pytest.raises(ValueError, match="the value of steps must be YAML"):
        load_config(REPO / "configs" / "train" / "pocket.yaml", ["steps=[1"])
