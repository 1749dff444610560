"""Held-out loss while training: what one gets by hand, the same batches every time, compiled once."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.network.model import Qwen3
from qwen3_jax.train.config import TrainConfig
from qwen3_jax.train.data import Data, Example, endless_data
from qwen3_jax.train.loop import Evaluation, train
from qwen3_jax.train.objectives.objective import domain_losses
from qwen3_jax.train.parsing import parse
from qwen3_jax.train.report.reporter import evaluated_numbers
from qwen3_jax.train.state import TrainState
from qwen3_jax.train.step import TRACES
from tests.tiny import dense_config, random_params

ARCHITECTURE = dense_config(vocab_size=96, num_hidden_layers=1)


@dataclasses.dataclass(frozen=True)
class Words:
    """Runs of tokens that follow one another, in two domains; the second has its tokens in steps of two."""

    seed: int

    def name(self, index: int) -> str:
        return f"words:{index}"

    def pieces(self, index: int) -> tuple[Example, ...]:
        rng = np.random.default_rng((self.seed, int(index)))
        size, first, domain = 6 + int(rng.integers(20)), int(rng.integers(96)), index % 2
        tokens = [(first + (domain + 1) * at) % 96 for at in range(size)]
        return (Example(tokens=tokens, loss=[False, *[True] * (size - 1)], domain=domain),)


def settings(run_dir: Path, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "run_dir": str(run_dir),
        "model": ARCHITECTURE.to_hf(),
        "steps": 10,
        "data": {"rows": 4, "length": 48, "streams": 2},
        "optimizer": {"warmup_steps": 0},
        "evaluation": {"every": 4, "batches": 3, "rows": 2},
    }
    return parse(TrainConfig, {**values, **changes})


def data(config: TrainConfig, held_out: Any = None) -> Data:
    return endless_data(config, Words(1), ("ones", "twos", "never"), held_out or Words(2))


def by_hand(params: Any, config: TrainConfig) -> dict[str, float]:
    """Mean losses by domain from whole logits in float64."""
    model = Qwen3(ARCHITECTURE, layout="unrolled")
    losses: list[np.ndarray] = []
    domains: list[np.ndarray] = []
    for share in data(config).held_out([0, 1]):
        batch = share.place(None)
        out = model.apply({"params": params}, jnp.asarray(batch.tokens), segment_ids=jnp.asarray(batch.segment_ids))
        logits = np.asarray(out.logits, np.float64)
        log_z = np.log(np.exp(logits).sum(-1))
        own = np.take_along_axis(logits, batch.targets[..., None], -1)[..., 0]
        losses.append((log_z - own)[batch.loss_mask])
        domains.append(batch.domains[batch.loss_mask])
    loss, domain = np.concatenate(losses), np.concatenate(domains)
    return {"all": loss.mean(), "ones": loss[domain == 0].mean(), "twos": loss[domain == 1].mean()}


def test_held_out_losses_are_those_made_by_hand(tmp_path: Path) -> None:
    config = settings(tmp_path)
    before = TRACES["evaluation"]
    _, state = train(config, data(config))
    assert TRACES["evaluation"] - before == 1
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert [line["step"] for line in lines if "eval_loss" in line] == [4, 8, 10]  # the last step has one too
    expected = by_hand(state.params, config)
    assert lines[-1]["eval_loss"] == pytest.approx(expected.pop("all"), rel=1e-5)
    assert lines[-1]["eval_domain_loss"] == pytest.approx(expected, rel=1e-5)  # a domain without tokens is left out
    assert lines[-1]["eval_loss"] < lines[3]["eval_loss"]


def state_of(params: Any, ema: Any) -> TrainState:
    return TrainState(step=0, params=params, opt_state=None, ema=ema)


def test_averaged_parameters_are_evaluated_where_there_are_any_and_batches_never_change(tmp_path: Path) -> None:
    config = settings(tmp_path)
    model = Qwen3(ARCHITECTURE, layout="unrolled")
    params, average = (random_params(ARCHITECTURE, "unrolled", seed) for seed in (1, 2))
    evaluation = Evaluation(config, model, data(config), [0, 1], None)
    found = [
        evaluated_numbers(jax.device_get(evaluation(state)), ("ones", "twos"))["eval_loss"]
        for state in (
            state_of(params, None),
            state_of(params, average),
            state_of(average, None),
            state_of(params, None),
        )
    ]
    assert found[1] == found[2] != found[0] == found[3]
    assert found[0] == pytest.approx(by_hand(params, config)["all"], rel=1e-5)


def test_held_out_sums_on_a_mesh_are_those_of_one_device(tmp_path: Path) -> None:
    from qwen3_jax.train.state import state_shardings
    from qwen3_jax.train.step import make_model
    from tests.train.batches import put_batch

    config = settings(tmp_path, mesh={"fsdp": 2, "tensor": 2, "context": 2}, layout="stacked")
    mesh = config.mesh.build()
    params = random_params(ARCHITECTURE)
    (batch, *_) = (share.place(None) for share in data(config).held_out([0, 1]))
    one = domain_losses(Qwen3(ARCHITECTURE), params, jax.tree.map(jnp.asarray, batch), 16, 2)
    model = make_model(config, mesh)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, state_shardings(model, config, mesh).params)
        many = jax.jit(lambda params, batch: domain_losses(model, params, batch, 16, 2))(
            placed, put_batch(batch, mesh, model.placement.rules)
        )
    for ours, theirs in zip(many, one, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_no_held_out_data_is_a_mistake(tmp_path: Path) -> None:
    config = settings(tmp_path)
    with pytest.raises(ValueError, match=r"evaluation must have held-out examples, got none"):
        train(config, endless_data(config, Words(1)))
