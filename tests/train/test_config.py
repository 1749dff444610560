"""Training configurations: the committed ones load, overrides apply, mistakes are named in one line."""

from pathlib import Path

import pytest

from qwen3_jax.train.config import TrainConfig, load_config
from qwen3_jax.train.parsing import parse, to_dict
from qwen3_jax.train.run import main
from tests.support import REPO

POCKET = REPO / "configs" / "train" / "pocket.yaml"


@pytest.mark.parametrize("path", sorted((REPO / "configs" / "train").glob("*.yaml")), ids=lambda path: path.stem)
def test_committed_configurations_load_and_begin_with_their_command(path: Path) -> None:
    config = load_config(path)
    if config.model:
        assert config.tokenizer.vocab_size <= config.model["vocab_size"]
    else:  # model and tokenizer are those of init_from
        assert " init_from=" in path.read_text(encoding="utf-8").splitlines()[0]
    assert path.read_text(encoding="utf-8").startswith(f"# qwen3-jax train configs/train/{path.name} run_dir=")
    assert parse(TrainConfig, to_dict(config)) == config


def test_overrides_are_dotted_yaml() -> None:
    changes = ["steps=5", "optimizer.learning_rate=1e-4", "data.tasks.families=[cups]", "model.num_hidden_layers=2"]
    config = load_config(POCKET, changes)
    assert (config.steps, config.optimizer.learning_rate) == (5, 1e-4)
    assert config.data.tasks.families == ("cups",)
    assert config.model["num_hidden_layers"] == 2
    assert config.optimizer.clip_norm == load_config(POCKET).optimizer.clip_norm


def test_nothing_after_the_equals_sign_empties_a_text() -> None:
    changes = ["init_from=", "data.domain=", "tokenizer.path=~", "data.sources=[{path: a.txt, field: }]"]
    config = load_config(POCKET, changes)
    assert (config.init_from, config.data.domain, config.tokenizer.path) == ("", "", "")
    assert config.data.sources[0].field == ""


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rat=1", "optimizer.learning_rat is not a key of the configuration: did you mean "
         "optimizer.learning_rate?"),
        ("stepz=1", "stepz is not a key of the configuration: did you mean steps?"),
        ("learning_rate=1", "learning_rate is not a key of the configuration: did you mean optimizer.learning_rate[?]"),
        ("data.learning_rate=1", "data.learning_rate is not .*: did you mean optimizer.learning_rate[?]"),
        ("lora_alph=1", "lora_alph is not a key of the configuration: did you mean lora.lora_alpha[?]"),
        ("rows=1", "did you mean data.rows or evaluation.rows[?]"),
        ("optimizer.lr=1", "optimizer.lr is not a key of the configuration: the keys of optimizer are name, "
         "learning_rate, schedule, .*muon_adam_rate$"),
        ("lr=1", "lr is not a key of the configuration: the keys are run_dir, seed, steps, .*keep_checkpoints$"),
        ("data.sources=[{pth: a}]", "data.sources.pth is not a key of .*: did you mean data.sources.path[?]"),
        ("evaluation.sources=[{feeld: a}]", "did you mean evaluation.sources.field[?]"),
        ("steps=many", "steps must be of type int, got 'many'"),
        ("steps=true", "steps must be of type int, got True"),
        ("steps=0", "steps must be positive, got 0"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate must be a finite number, got nan"),
        ("optimizer.b1=.nan", "optimizer.b1 must be a finite number, got nan"),
        ("ema_decay=-inf", "ema_decay must be a finite number, got -inf"),
        ("loss.balance_coefficient=1e999", "loss.balance_coefficient must be a finite number, got inf"),
        (f"optimizer.eps=1{'0' * 400}", "optimizer.eps must be a finite number, got inf"),
        ("data.lengths=[{share: .inf}]", "data.lengths.share must be a finite number, got inf"),
        ("model.rope_theta=.inf", "model.rope_theta must be a finite number, got inf"),
        ("model.rope_scaling={factor: [.nan]}", "model.rope_scaling.factor must be a finite number, got nan"),
        ("seed=-1", "seed must be in 0..4294967295, got -1"),
        ("seed=4294967296", "seed must be in 0..4294967295, got 4294967296"),
        ("steps=", "steps must be of type int, got None"),
        ("data=3", "data must be a section"),
        ("steps.more=3", "steps is a value, not a section"),
        ("layout=round", r"layout must be one of \['stacked', 'unrolled'\], got 'round'"),
        ("data.tasks.families=cups", "data.tasks.families must be a list"),
        ("steps", "an override must be key=value, got 'steps'"),
    ],
)  # fmt: skip
def test_mistakes_are_named(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(POCKET, [override])


def test_the_command_reports_mistakes_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("steps: [1", encoding="utf-8")
    for argv in (
        [str(tmp_path / "none.yaml")],
        [str(broken)],
        [str(POCKET)],  # no run_dir
        [str(POCKET), f"run_dir={tmp_path}/run", "tokenizer.vocab_size=5000"],
        [str(POCKET), f"run_dir={tmp_path}/run", "model.hidden_act=gelu"],
    ):
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert "run_dir=DIR" in capsys.readouterr().out


def test_remat_and_backends_are_names_and_older_files_say_true_or_false() -> None:
    remats = [load_config(POCKET, [f"remat={value}"]).remat for value in ("true", "false", "dots")]
    assert remats == ["full", "none", "dots"]
    assert load_config(POCKET, ["moe_backend=reference"]).moe_backend == "reference"
    for key in ("remat", "moe_backend", "attention_backend"):
        with pytest.raises(ValueError, match=f"{key} must be one of .*got 'fast'"):
            load_config(POCKET, [f"{key}=fast"])
