"""What a line of metrics.jsonl says: numbers counted from the batch, and what happens when they are not finite."""

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from qwen3_jax.network.model import Qwen3
from qwen3_jax.plans.flops import step_flops
from qwen3_jax.sharding.ahead_of_time.chips import CHIPS, peak_flops
from qwen3_jax.train.config import TrainConfig
from qwen3_jax.train.objectives.objective import objective
from qwen3_jax.train.parsing import parse
from qwen3_jax.train.report.reporter import (
    Reporter,
    balance,
    count_work,
    memory_bytes,
    number,
    resident_bytes,
    work_flops,
)
from qwen3_jax.train.report.sinks import JsonLines
from qwen3_jax.train.settings import LossConfig
from qwen3_jax.train.stop import SKIPS_IN_A_ROW
from tests.tiny import dense_config, moe_config, random_params
from tests.train.test_sharded import packed_batch


@flax.struct.dataclass
class Metrics:
    """All that a step may tell."""

    loss: Any
    grad_norm: Any
    learning_rate: Any
    balance_loss: Any
    z_loss: Any
    domain_loss: Any
    domain_tokens: Any
    finite: Any
    expert_load: Any


@dataclasses.dataclass(frozen=True)
class Share:
    examples: tuple[str, ...]


def metrics(loss: float = 1.5, grad_norm: float = 2.0, finite: bool = True) -> Metrics:
    one = jnp.float32(0.25)
    return Metrics(
        loss=jnp.float32(loss),
        grad_norm=jnp.float32(grad_norm),
        learning_rate=one,
        balance_loss=one,
        z_loss=one,
        domain_loss=jnp.asarray([6.0, 0.0, 5.0]),
        domain_tokens=jnp.asarray([3.0, 0.0, 2.0]),
        finite=jnp.asarray(finite),
        expert_load=(jnp.asarray([[4, 0, 2, 2]]), jnp.asarray([[3, 3, 1, 1]])),
    )


def config(run_dir: Path, **changes: Any) -> TrainConfig:
    return parse(TrainConfig, {"run_dir": str(run_dir), "model": moe_config().to_hf(), "steps": 100, **changes})


def reporter(run_dir: Path, **changes: Any) -> Reporter:
    sinks = [JsonLines(run_dir / "metrics.jsonl")]
    return Reporter(config(run_dir, **changes), sinks, ("code", "prose", "maths"), expert_devices=2)


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


WORK = (jnp.int32(5), jnp.float32(9))


def test_a_line_has_every_number(tmp_path: Path) -> None:
    report = reporter(tmp_path, report={"peak_tflops": 1e-9})
    report.push(1, metrics(), WORK)
    report.attach({"domain_loss": jnp.asarray([6.0, 0.0, 4.0]), "domain_tokens": jnp.asarray([3.0, 0.0, 1.0])})
    time.sleep(0.02)
    report.push(2, metrics(), WORK)
    report.persist()
    first, second = lines(tmp_path)
    assert {name: first[name] for name in ("step", "loss", "grad_norm", "learning_rate", "balance_loss", "z_loss")} == {
        "step": 1, "loss": 1.5, "grad_norm": 2.0, "learning_rate": 0.25, "balance_loss": 0.25, "z_loss": 0.25,
    }  # fmt: skip
    assert first["domain_loss"] == {"code": 2.0, "maths": 2.5}  # no document of the other one was there
    assert (first["eval_loss"], first["eval_domain_loss"]) == (2.5, {"code": 2.0, "maths": 4.0})
    assert "eval_loss" not in second
    assert (first["expert_load_max"], first["device_load_max"]) == (2.0, 1.5)
    entropy = min(stats.entropy(load) / math.log(4) for load in ([4, 0, 2, 2], [3, 3, 1, 1]))
    assert first["expert_load_entropy"] == pytest.approx(entropy, abs=1e-4)
    assert 0 < first["tokens_per_second"] <= 5 / 0.02
    flops = work_flops(moe_config(), 5, 9)
    assert first["mfu"] == pytest.approx(flops * first["tokens_per_second"] / 5 / 1e3, rel=0.05)
    assert first["memory_bytes"] > 2**20


def test_a_term_that_is_not_added_has_no_field(tmp_path: Path) -> None:
    report = reporter(tmp_path)
    report.push(1, dataclasses.replace(metrics(), z_loss=None, balance_loss=None), WORK)
    report.flush()
    assert not {"z_loss", "balance_loss"} & set(lines(tmp_path)[0])
    for config, z_loss, added in ((moe_config(), 0.0, {"balance_loss"}), (dense_config(), 0.01, {"z_loss"})):
        loss, model = LossConfig(chunk=64, z_loss=z_loss), Qwen3(config)

        def told(params: Any, batch: Any, model: Qwen3 = model, loss: LossConfig = loss) -> dict[str, Any]:
            _, report = objective(model, params, batch, loss)
            return {name: getattr(report, name) for name in ("z_loss", "balance_loss")}

        params = jax.eval_shape(lambda config=config: random_params(config))
        shapes = jax.eval_shape(told, params, packed_batch(config.vocab_size))
        assert {name for name, shape in shapes.items() if shape is not None} == added


def test_work_is_that_of_the_documents_in_a_batch() -> None:
    segments = jnp.asarray([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]])
    tokens, pairs = count_work(segments)
    assert (int(tokens), float(pairs)) == (11, (1 + 2 + 3) + (1 + 2) + (1 + 2 + 3 + 4 + 5 + 6))
    for architecture in (dense_config(), moe_config()):  # one document a row: what a plan counts
        whole = step_flops(architecture, "train", 6, 2).model
        tokens, pairs = count_work(jnp.ones((2, 6), jnp.int32))
        assert work_flops(architecture, int(tokens), float(pairs)) == pytest.approx(whole, rel=1e-12)


def test_peaks_are_the_published_ones_and_unknown_devices_have_none() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3") == CHIPS["h100"].flops
    assert peak_flops("TPU7x") == CHIPS["tpu7x"].flops / 2
    assert peak_flops("cpu") is None
    assert peak_flops("NVIDIA H100 PCIe") is None


def test_memory_is_what_the_system_says() -> None:
    import psutil

    assert resident_bytes() == pytest.approx(psutil.Process().memory_info().rss, rel=0.05)
    assert memory_bytes() == pytest.approx(resident_bytes(), rel=0.05)  # CPU devices tell nothing


def test_numbers_read_back_as_the_same_float32() -> None:
    for value in np.random.default_rng(0).normal(size=200).astype(np.float32):
        assert np.float32(json.loads(json.dumps(number(value)))) == value
    assert number(np.float32("nan")) is None
    assert balance((), 2) == {}


@pytest.mark.parametrize("bad", [{"loss": math.nan}, {"grad_norm": math.inf}, {"finite": False}])
def test_a_step_that_is_not_finite_stops_the_run_and_names_step_and_data(tmp_path: Path, bad: dict[str, Any]) -> None:
    report = reporter(tmp_path)
    report.push(1, metrics(), WORK, Share(("good:0",)))
    report.push(2, metrics(**bad), WORK, Share(("web:17", "web:18", "code:3", "code:4", "code:5")))
    assert [line["step"] for line in lines(tmp_path)] == [1]  # step 2 is not waited for yet
    says = r"at step 2 \(data web:17, web:18, code:3 and 2 more, listed in .*non_finite_0.json\): lower"
    with pytest.raises(FloatingPointError, match=says) as raised:
        report.flush()
    assert "\n" not in str(raised.value)
    assert str(raised.value).endswith("non_finite_0.json): lower the learning rate, or look at these data")
    listed = json.loads((tmp_path / "non_finite_0.json").read_text())
    assert listed == {"step": 2, "examples": ["web:17", "web:18", "code:3", "code:4", "code:5"]}
    assert [line["step"] for line in lines(tmp_path)] == [1]


def test_with_skip_it_goes_on_counts_and_stops_after_many_in_a_row(tmp_path: Path) -> None:
    report = reporter(tmp_path, on_non_finite="skip")
    step = 0
    for bad in [False, *[True] * (SKIPS_IN_A_ROW - 1), False, *[True] * (SKIPS_IN_A_ROW - 1)]:
        step += 1
        report.push(step, metrics(math.nan if bad else 1.0), WORK)
    report.flush()
    told = lines(tmp_path)
    assert [line["step"] for line in told] == list(range(1, step + 1))
    assert (told[0]["skipped"], told[-1]["skipped"]) == (0, 2 * (SKIPS_IN_A_ROW - 1))
    assert (told[0]["loss"], told[-1]["loss"]) == (1.0, None)  # NaN is not JSON
    report.push(step + 1, metrics(math.nan), WORK)
    with pytest.raises(FloatingPointError, match=f"at step {step + 1} .* for {SKIPS_IN_A_ROW} steps in a row"):
        report.flush()


@pytest.mark.parametrize(
    ("loads", "entropy"),
    [([[[2, 2, 0, 0]]], 0.5), ([[[3, 3, 3, 3]], [[12, 0, 0, 0], [1, 1, 1, 1]]], 0.0), ([[[3, 3, 3, 3]]], 1.0)],
)
def test_entropy_of_the_load_is_that_of_the_worst_layer(loads: list[Any], entropy: float) -> None:
    assert balance([np.array(run) for run in loads], 2)["expert_load_entropy"] == pytest.approx(entropy, abs=1e-4)


def skipped(run_dir: Path, process: int = 0) -> list[dict[str, Any]]:
    path = run_dir / f"non_finite_{process}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_skipped_step_is_named_with_its_data_in_a_line_and_in_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = reporter(tmp_path, on_non_finite="skip")
    report.push(1, metrics(), WORK, Share(("good:0",)))
    report.push(2, metrics(grad_norm=math.inf), WORK, Share(("web:17", "web:18", "code:3", "code:4", "code:5")))
    report.push(3, metrics(), WORK, Share(("good:1",)))
    report.push(4, metrics(math.nan), WORK, Share(("wéb:20",)))
    report.persist()
    assert skipped(tmp_path) == [
        {"step": 2, "examples": ["web:17", "web:18", "code:3", "code:4", "code:5"]},
        {"step": 4, "examples": ["wéb:20"]},
    ]
    file = tmp_path / "non_finite_0.jsonl"
    assert capsys.readouterr().out.splitlines() == [
        f"loss and gradient must be finite, got loss 1.5 and gradient norm inf at step 2 (data web:17, web:18, code:3 "
        f"and 2 more, listed in {file}): the step is skipped",
        f"loss and gradient must be finite, got loss nan and gradient norm 2.0 at step 4 (data wéb:20, listed in "
        f"{file}): the step is skipped",
    ]
    assert not (tmp_path / "non_finite_0.json").exists()  # nothing stopped
    # From the checkpoint of step 3 on again: step 4 is done again, and may go well.
    again = reporter(tmp_path, on_non_finite="skip")
    again.push(4, metrics(), WORK, Share(("wéb:20",)))
    again.flush()
    assert [line["step"] for line in skipped(tmp_path)] == [2]


def test_what_an_earlier_start_stopped_at_goes_when_the_run_has_passed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = reporter(tmp_path)
    first.push(5, metrics(math.nan), WORK, Share(("web:17",)))
    with pytest.raises(FloatingPointError):
        first.flush()
    left = tmp_path / "non_finite_0.json"
    (tmp_path / "non_finite_3.json").write_text(left.read_text())  # of another process, which this start lacks
    (tmp_path / "non_finite_3.jsonl").write_text('{"step": 2, "examples": []}\n{"step": 4, "examples": []}\n')
    second = reporter(tmp_path)
    second.push(4, metrics(), WORK)
    second.push(5, metrics(), WORK)  # reports step 4
    assert left.exists()
    second.flush()
    assert not list(tmp_path.glob("non_finite_*.json"))
    assert [line["step"] for line in skipped(tmp_path, 3)] == [2]
    # Beside other processes each looks after its own.
    left.write_text('{"step": 5, "examples": []}')
    monkeypatch.setattr("jax.process_count", lambda: 4)
    monkeypatch.setattr("jax.process_index", lambda: 3)
    (tmp_path / "non_finite_3.json").write_text("torn")
    third = reporter(tmp_path)
    third.push(6, metrics(), WORK)
    third.flush()
    assert [path.name for path in tmp_path.glob("non_finite_*.json")] == ["non_finite_0.json"]
