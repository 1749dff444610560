"""`inspect`, `convert`, `train` and `demo` in this process."""

import importlib
import json

import pytest

from qwen3_jax import infer
from qwen3_jax.checkpoints.inspect import inspect_checkpoint
from qwen3_jax.checkpoints.load import from_pretrained
from qwen3_jax.text.tokenizer import load_tokenizer


def test_inspect_shows_what_the_inspection_found(run, checkpoint):
    found = inspect_checkpoint(checkpoint)
    assert json.loads(run("inspect", checkpoint, "--json").out) == json.loads(json.dumps(found))
    ran = run("inspect", checkpoint)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.splitlines()[0] == str(checkpoint)
    labels = [line.split()[0] for line in ran.out.splitlines()[1:]]
    for label in "parameters memory config tokenizer template odd".split():
        assert label in labels
    assert f"{found['parameters']['total']:,} in all" in ran.out
    assert labels.count("odd") == len(found["odd"]) > 0


def test_inspect_knows_the_published_sizes(run):
    out = run("inspect", "--model-config", "qwen3-235b-a22b").out
    assert "235,093,634,560 in all" in out
    assert json.loads(run("inspect", "--model-config", "qwen3-0.6b", "--json").out)["parameters"]["total"] == 596049920


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ((), "got neither"),
        ((".", "--model-config", "qwen3-0.6b"), "got both"),
        (("--model-config", "qwen3-0.6"), "did you mean qwen3-0.6b?"),
        (("no/such/place",), "no such"),
        (("tests",), "config.json"),
    ],
)
def test_inspect_refuses_in_one_line(run, argv, says):
    ran = run("inspect", *argv)
    assert (ran.status, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert says in ran.err


def test_convert_writes_a_checkpoint_that_answers(run, checkpoint, tmp_path):
    target = tmp_path / "new"
    ran = run("convert", checkpoint, target, "--dtype", "float32", "--max-shard-size", "50KB")
    assert (ran.status, ran.err) == (0, "")
    assert "float32" in ran.out
    assert len(list(target.glob("*.safetensors"))) > 1
    config = infer.GenerationConfig(max_new_tokens=40, temperature=0)
    answers = [
        infer.generate(*from_pretrained(directory, dtype="float32"), load_tokenizer(directory), ["x"], config)
        for directory in (checkpoint, target)
    ]
    assert answers[0] == answers[1]


def test_convert_in_json(run, checkpoint, tmp_path):
    done = json.loads(run("convert", checkpoint, tmp_path / "half", "--dtype", "bfloat16", "--json").out)
    assert (done["dtype"], done["path"]) == ("bfloat16", str(tmp_path / "half"))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--dtype", "int4"), "dtype"),
        (("--max-shard-size", "huge"), "max_shard_size"),
        (("--max-shard-size", "0"), "max_shard_size"),
    ],
)
def test_convert_refuses_in_one_line(run, checkpoint, tmp_path, argv, says):
    ran = run("convert", checkpoint, tmp_path / "new", *argv)
    assert (ran.status, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert says in ran.err
    assert not (tmp_path / "new").exists()


def test_convert_does_not_overwrite_its_source(run, checkpoint):
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    assert run("convert", checkpoint, checkpoint).status == 2
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before


def test_train_hands_its_configuration_to_the_run(run, monkeypatch, tmp_path):
    module, seen = importlib.import_module("qwen3_jax.train.run"), []
    monkeypatch.setattr(module, "run", lambda config: seen.append(config) or tmp_path / "model")
    ran = run("train", "pocket", f"run_dir={tmp_path}", "optimizer.learning_rate=1e-3", "steps=3")
    assert ran == (0, f"{tmp_path / 'model'}\n", "")
    assert (seen[0].run_dir, seen[0].optimizer.learning_rate, seen[0].steps) == (str(tmp_path), 1e-3, 3)
    assert seen[0].model["model_type"] == "qwen3"


def test_demo_answers_in_three_ways_and_measures_every_budget(run, checkpoint, monkeypatch):
    from qwen3_jax.train.pocket import evaluate

    monkeypatch.setattr(evaluate, "MAX_NEW_TOKENS", 100)
    ran = run("demo", "--model", checkpoint, "--problems", "2", "--json")
    assert (ran.status, ran.err) == (0, "")
    found = json.loads(ran.out)
    assert [answer["mode"] for answer in found["answers"]] == [
        "thinking",
        "not thinking",
        "at most 16 tokens of thinking",
    ]
    assert len({answer["question"] for answer in found["answers"]}) == 1
    assert [row["budget"] for row in found["curve"]] == [0, 8, 16, 32, 64, None]
    assert all(row["problems"] == 2 and 0 <= row["right"] <= 2 for row in found["curve"])


def test_demo_wants_a_sensible_number_of_problems(run):
    ran = run("demo", "--problems", "0")
    assert (ran.status, ran.err.count("\n")) == (2, 1)
