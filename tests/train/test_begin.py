"""Where a run begins: from a model or an earlier run, with its tokenizer, and what may change on the way."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml

from qwen3_jax.checkpoints.load import from_pretrained, save_pretrained
from qwen3_jax.cli import main
from qwen3_jax.generation_defaults import GenerationDefaults
from qwen3_jax.network.model import Qwen3
from qwen3_jax.text.tokenizer import load_tokenizer
from qwen3_jax.train.config import TrainConfig, without_effect
from qwen3_jax.train.data import make_data
from qwen3_jax.train.initial import load_initial, resolve, write_tokenizer
from qwen3_jax.train.parsing import parse
from qwen3_jax.train.run import run
from qwen3_jax.train.run_dir import stored_config
from qwen3_jax.train.state import init_state, state_shardings
from qwen3_jax.train.step import TRACES, make_model
from tests import tiny
from tests.train.pocket_fixtures import MODEL


def config(run_dir: Path, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "run_dir": str(run_dir),
        "steps": 8,
        "model": MODEL,
        "tokenizer": {"vocab_size": 760, "corpus_size": 800},
        "data": {"rows": 2, "length": 256},
        "optimizer": {"warmup_steps": 2, "learning_rate": 1e-2},
        "evaluation": {"every": 4, "batches": 2},
        "checkpoint_every": 4,
    }
    return parse(TrainConfig, {**values, **changes})


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is done."""
    run_dir = tmp_path_factory.mktemp("first")
    assert run(config(run_dir)) == run_dir / "model"
    return run_dir


def test_a_second_stage_goes_on_where_the_first_ended(first: Path, tmp_path: Path) -> None:
    """Its first evaluation, after a step that moves nothing (the warm-up begins at 0), is the last one of the first
    stage; its model has the new context length; a later start needs the first stage no more."""
    changes: dict[str, Any] = {"model": {"max_position_embeddings": 4096}, "evaluation": {"every": 1, "batches": 2}}
    changes |= {"steps": 2, "optimizer": {"warmup_steps": 1, "learning_rate": 1e-2}, "checkpoint_every": 1}
    second = config(tmp_path / "second", init_from=str(first), tokenizer={}, **changes)
    model, _ = from_pretrained(run(second), dtype="float32")
    told = lines(tmp_path / "second")
    assert told[0]["eval_loss"] == pytest.approx(lines(first)[-1]["eval_loss"], rel=1e-6)
    assert told[1]["eval_loss"] != told[0]["eval_loss"]
    assert (model.config.max_position_embeddings, model.config.hidden_size) == (4096, 32)
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "second" / "model" / name).read_bytes() == (first / "model" / name).read_bytes()
    stored = stored_config(tmp_path / "second")
    assert stored is not None
    assert stored.model["hidden_size"] == 32  # the whole of it
    assert stored.model["max_position_embeddings"] == 4096
    gone = dataclasses.replace(second, init_from=str(tmp_path / "gone"))
    with pytest.raises(ValueError, match="differs in init_from"):
        run(gone)
    (first / "model").rename(first / "elsewhere")
    try:  # its own checkpoint wins
        again, _ = from_pretrained(run(second), dtype="float32")
    finally:
        (first / "elsewhere").rename(first / "model")
    assert again.config == model.config


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": {"hidden_size": 64}}, "model.hidden_size must be 32 as in init_from, got 64: with init_from only"),
        ({"model": {"tie_word_embeddings": False}}, "model.tie_word_embeddings must be True as in init_from"),
        ({"model": {"rope_thet": 1.0}}, "model.rope_thet must be None as in init_from, got 1.0"),
    ],
)
def test_what_would_change_the_parameters_is_refused(first: Path, tmp_path: Path, changes: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        run(config(tmp_path / "run", init_from=str(first), **changes))
    assert not (tmp_path / "run").exists()


def test_a_rope_base_is_changed_whichever_way_the_file_spells_it(tmp_path: Path) -> None:
    """transformers 5 keeps it in `rope_parameters`, where a `rope_theta` beside it would be overruled."""
    hf = {key: value for key, value in MODEL.items() if key != "rope_theta"}
    hf["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    (tmp_path / "config.json").write_text(json.dumps(hf))
    resolved = resolve(config(tmp_path / "run", init_from=str(tmp_path), model={"rope_theta": 1e6}))
    assert make_model(resolved, None).config.rope_theta == 1e6
    assert make_model(resolve(dataclasses.replace(resolved, model={})), None).config.rope_theta == 10000.0


def test_a_run_that_is_not_done_has_no_model_to_begin_from(tmp_path: Path) -> None:
    (tmp_path / "half" / "checkpoints").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"init_from must be a run that is done, got .*half without a model"):
        run(config(tmp_path / "run", init_from=str(tmp_path / "half")))


def test_a_run_of_adapters_is_no_model_to_begin_from(tmp_path: Path) -> None:
    for name in ("checkpoints", "adapter"):
        (tmp_path / "lora" / name).mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"which trained adapters: merge them \(qwen3-jax convert BASE DIR"):
        run(config(tmp_path / "run", init_from=str(tmp_path / "lora")))


def test_parameters_go_straight_onto_the_mesh_as_float32_masters(tmp_path: Path) -> None:
    architecture = tiny.moe_config()
    params = random_params = tiny.random_params(architecture, dtype=np.dtype("bfloat16"))
    save_pretrained(tmp_path / "model", Qwen3(architecture), random_params)
    settings = resolve(
        config(
            tmp_path,
            init_from=str(tmp_path / "model"),
            model={},
            layout="stacked",
            data={"rows": 4, "length": 256},
            mesh={"fsdp": 2, "expert": 2, "tensor": 2},
        )
    )
    mesh = settings.mesh.build()
    model = make_model(settings, mesh)
    with jax.set_mesh(mesh):
        state = init_state(model, settings, mesh, load_initial(settings, model, mesh))
    shardings = state_shardings(model, settings, mesh).params
    for ours, theirs, sharding in zip(*map(jax.tree.leaves, (state.params, params, shardings)), strict=True):
        assert ours.dtype == np.float32
        assert ours.sharding == sharding
        np.testing.assert_array_equal(ours, np.asarray(theirs, np.float32))
    assert int(state.step) == 0


def test_a_tokenizer_that_exists_is_taken_over_with_its_sampling_defaults(tmp_path: Path) -> None:
    origin = tiny.write_tokenizer(tmp_path / "origin")
    sampling = GenerationDefaults(eos_token_ids=(5,), temperature=0.1).to_hf()
    (origin / "generation_config.json").write_text(json.dumps(sampling))
    settings = config(tmp_path, tokenizer={"path": str(origin)})
    write_tokenizer(tmp_path / "tokenizer", settings)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "tokenizer" / name).read_bytes() == (origin / name).read_bytes()
    assert make_data(settings, load_tokenizer(tmp_path / "tokenizer")).domain_names
    small = dataclasses.replace(settings, model={**MODEL, "vocab_size": 300})
    with pytest.raises(ValueError, match=r"must have at most model.vocab_size=300 tokens, got 386: take another"):
        write_tokenizer(tmp_path / "other", small)


def test_nothing_is_drawn_where_a_checkpoint_is_restored(first: Path) -> None:
    """A start that has nothing to do makes neither fresh parameters nor a step."""
    before = TRACES["train_step"]
    run(config(first))
    assert TRACES["train_step"] == before


def files(directory: Path) -> dict[str, Any]:
    """Data from a file."""
    directory.mkdir(parents=True, exist_ok=True)
    records = [{"text": f"{number} and {number + 1}, so it goes on", "domain": "n"} for number in range(60)]
    (directory / "text.jsonl").write_text("\n".join(map(json.dumps, records)))
    return {"rows": 2, "length": 64, "sources": [{"path": str(directory / "text.jsonl")}], "cache": str(directory)}


def test_a_start_without_a_step_claims_nothing(tmp_path: Path) -> None:
    """The corrected command starts in the same run_dir, with the tokenizer that it says and not the one of before."""
    data = files(tmp_path / "data")
    missing = data | {"sources": [{"path": str(tmp_path / "nope.jsonl")}]}
    changes: dict[str, Any] = {"steps": 1, "optimizer": {"warmup_steps": 0}, "evaluation": {}, "checkpoint_every": 1}
    with pytest.raises(FileNotFoundError, match=r"nope.jsonl"):
        run(config(tmp_path / "run", data=missing, **changes))
    without = data | {"held_out": 1e-9}
    with pytest.raises(ValueError, match=r"evaluation must have a held-out example|data\.held_out"):
        run(config(tmp_path / "run", data=without, **changes | {"evaluation": {"every": 1}}))
    first = (tmp_path / "run" / "tokenizer" / "tokenizer.json").read_bytes()
    changes["tokenizer"] = {"vocab_size": 284, "corpus_size": 60}
    assert run(config(tmp_path / "run", data=data, **changes)) == tmp_path / "run" / "model"
    assert (tmp_path / "run" / "tokenizer" / "tokenizer.json").read_bytes() != first
    with pytest.raises(ValueError, match=r"differs in seed \(0 there, 5 now\): choose another run_dir"):
        run(config(tmp_path / "run", data=data, seed=5, **changes))


def test_another_model_to_begin_from_replaces_that_of_a_start_without_a_step(first: Path, tmp_path: Path) -> None:
    """Nothing of the first one's config.json stays."""
    data, other = files(tmp_path / "data"), tiny.dense_config()
    params = tiny.random_params(other, "unrolled")
    tok = load_tokenizer(tiny.write_tokenizer(tmp_path / "origin"))
    save_pretrained(tmp_path / "other", Qwen3(other, layout="unrolled"), params, tokenizer=tok)
    changes: dict[str, Any] = {"steps": 1, "optimizer": {"warmup_steps": 0}, "evaluation": {}, "tokenizer": {}}
    missing = data | {"sources": [{"path": str(tmp_path / "nope.jsonl")}]}
    with pytest.raises(FileNotFoundError, match=r"nope.jsonl"):
        run(config(tmp_path / "run", data=missing, model={}, init_from=str(first), **changes))
    run(config(tmp_path / "run", data=data, model={}, init_from=str(tmp_path / "other"), **changes))
    stored = stored_config(tmp_path / "run")
    assert stored is not None
    assert stored.model == other.to_hf()


def test_nothing_to_evaluate_shows_before_there_are_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("parameters were made first")

    monkeypatch.setattr("qwen3_jax.train.loop.begin", never)
    data = files(tmp_path / "data") | {"length": 8}  # no document fits a row
    with pytest.raises(ValueError, match="held-out"):
        run(config(tmp_path / "run", data=data, evaluation={"every": 1}))
    for name, value in (("batches", 0), ("rows", -3), ("every", -5)):
        with pytest.raises(ValueError, match=f"evaluation.{name} must be at least"):
            config(tmp_path / "run", evaluation={name: value})


def test_what_decides_nothing_learnt_may_change_and_a_constant_run_may_go_on(tmp_path: Path) -> None:
    data = files(tmp_path / "data") | {"threads": 0}
    rate = {"warmup_steps": 0, "schedule": "constant"}
    changes: dict[str, Any] = {"steps": 2, "optimizer": rate, "evaluation": {}, "checkpoint_every": 1}
    run(config(tmp_path / "run", data=data, **changes))
    moved = tmp_path / "cache"
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    del stored["data"]["on_bad_record"]  # written before there was such a key
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(stored))
    changes |= {"steps": 4, "evaluation": {"every": 2, "batches": 1, "sources": data["sources"]}}
    run(config(tmp_path / "run", data=data | {"threads": 1, "cache": str(moved)}, **changes))
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3, 4]
    whole = config(tmp_path / "whole", data=data, **changes)
    run(whole)
    assert [line["loss"] for line in lines(tmp_path / "whole")] == [line["loss"] for line in lines(tmp_path / "run")]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"loss": {"balance": "micro_batch"}}, "loss.balance=micro_batch is loss.balance=global"),
        ({"evaluation": {"sources": [{"path": "x"}]}}, "evaluation.sources are not read"),
        ({"data": {"sources": [{"path": "x"}], "held_out": 0.1}, "evaluation": {}}, "nothing evaluates with"),
        (
            {
                "data": {"sources": [{"path": "x"}], "held_out": 0.1},
                "evaluation": {"every": 1, "sources": [{"path": "y"}]},
            },
            "as there are evaluation.sources",
        ),
        ({"data": {"sources": [{"path": "x"}], "curriculum_examples": 9}}, "data.curriculum_examples is of the pocket"),
        ({"init_from": "x", "tokenizer": {"vocab_size": 300}}, "tokenizer.vocab_size has no effect with init_from"),
        ({}, None),
    ],
)
def test_settings_without_effect_are_said(tmp_path: Path, changes: Any, says: str | None) -> None:
    plain: dict[str, Any] = {"tokenizer": {}}
    told = list(without_effect(config(tmp_path, **plain | changes)))
    assert len(told) == (says is not None)
    assert says is None or says in told[0]


def test_the_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Though the run then ends for another reason."""
    (tmp_path / "config.yaml").write_text("{}")
    words = [
        "train",
        str(tmp_path / "config.yaml"),
        f"run_dir={tmp_path / 'run'}",
        "loss.balance=micro_batch",
        "model={}",
    ]
    assert main(words) == 2
    assert "warning: loss.balance=micro_batch is loss.balance=global" in capsys.readouterr().err
