"""The loop: it learns, compiles once, resumes bit for bit, stops on a loss that is not finite, exports a checkpoint."""

import dataclasses
import json
import math
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.checkpoints.load import from_pretrained
from qwen3_jax.config import ModelConfig
from qwen3_jax.network.model import Qwen3
from qwen3_jax.parameters.specs import spec_tree
from qwen3_jax.train.config import TrainConfig
from qwen3_jax.train.data import Data, batches, endless_data, make_data
from qwen3_jax.train.loop import _warn_of_remat, train
from qwen3_jax.train.optimizer import decay_mask, schedule
from qwen3_jax.train.parsing import parse
from qwen3_jax.train.report.reporter import balance
from qwen3_jax.train.run import run
from qwen3_jax.train.step import TRACES
from qwen3_jax.train.streams import prefetch
from tests.tiny import random_params
from tests.train.batches import batch_loss
from tests.train.pocket_fixtures import MODEL, pocket_tokenizer


def config(run_dir: Path, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "run_dir": str(run_dir),
        "steps": 12,
        "model": MODEL,
        "tokenizer": {"vocab_size": 760, "corpus_size": 800},
        "data": {"rows": 2, "length": 256, "lookahead": 1.0, "threads": 0},
        "optimizer": {"warmup_steps": 3, "learning_rate": 1e-2},
        "report": {"every": 1},
        "checkpoint_every": 6,
    }
    return parse(TrainConfig, {**values, **changes})


def data(settings: TrainConfig) -> Data:
    return make_data(settings, pocket_tokenizer())


def lines(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, Any, int]:
    """A run of 12 steps without a break, and how often its step was traced."""
    settings = config(tmp_path_factory.mktemp("whole"))
    before = TRACES["train_step"]
    _, state = train(settings, data(settings))
    return settings, state, TRACES["train_step"] - before


def test_the_loss_falls_and_every_step_is_reported(finished: tuple[TrainConfig, Any, int]) -> None:
    settings, state, _ = finished
    report = lines(Path(settings.run_dir))
    assert [line["step"] for line in report] == list(range(1, 13))
    fields = "step loss grad_norm learning_rate domain_loss tokens_per_second memory_bytes"
    assert set(report[0]) == set(fields.split())
    assert report[-1]["loss"] < 0.8 * report[0]["loss"]
    batch = next(batches(data(settings).documents, 2, 256, first=10_000)).batch
    model = Qwen3(ModelConfig.from_hf(MODEL), layout="unrolled")
    fresh = jax.jit(model.init)(jax.random.key(0), jnp.asarray(batch.tokens))["params"]
    loss_of = jax.jit(lambda params, batch: batch_loss(model, params, batch, 64)[0])
    loss = [float(loss_of(params, batch)) for params in (fresh, state.params)]
    assert loss[1] < 0.85 * loss[0]  # on examples it has not seen


def test_the_step_is_traced_once(finished: tuple[TrainConfig, Any, int]) -> None:
    assert finished[2] == 1


@dataclasses.dataclass(frozen=True)
class Breaks:
    """The same examples, until `what` happens when example `at` is asked for."""

    settings: TrainConfig
    at: int
    what: Callable[[], None]

    def pieces(self, index: int) -> Any:
        if index == self.at:
            self.what()
        return data(self.settings).documents.pieces(index)

    def name(self, index: int) -> str:
        return str(index)


class Broken(Exception):
    pass


def test_a_resumed_run_is_the_same_run_bit_for_bit(finished: tuple[TrainConfig, Any, int], tmp_path: Path) -> None:
    whole, expected, _ = finished
    settings = dataclasses.replace(whole, run_dir=str(tmp_path))

    def breaks() -> None:
        raise Broken

    with pytest.raises(Broken):  # between the checkpoint of step 6 and the end
        train(settings, endless_data(settings, Breaks(settings, at=75, what=breaks), "abc"))
    assert 6 < lines(tmp_path)[-1]["step"] < 12
    # From step 6 on again; SIGTERM saves the step it is at.
    leaves = Breaks(settings, at=80, what=lambda: os.kill(os.getpid(), signal.SIGTERM))
    _, state = train(settings, endless_data(settings, leaves, "abc"))
    assert 6 < int(state.step) < 12
    _, state = train(settings, data(settings))
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 13))
    losses = [[line["loss"] for line in lines(Path(run_dir))] for run_dir in (whole.run_dir, settings.run_dir)]
    assert losses[0] == losses[1]


def test_a_loss_that_is_not_finite_stops_the_run_and_nothing_is_saved_after_it(tmp_path: Path) -> None:
    settings = config(tmp_path, checkpoint_every=1)

    def broken(model: Qwen3, mesh: Any) -> Any:
        params = random_params(model.config, "unrolled")
        return params | {"embed_tokens": params["embed_tokens"] * jnp.float32(math.nan)}

    with pytest.raises(FloatingPointError, match=r"must be finite, got loss nan and gradient norm nan at step 1 "):
        train(settings, data(settings), broken)
    assert not lines(tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_run_exports_a_checkpoint_that_loads_and_refuses_another_configuration(tmp_path: Path) -> None:
    settings = config(tmp_path, steps=4, layout="stacked", checkpoint_every=4)
    directory = run(settings)
    model, params = from_pretrained(directory, dtype="float32")
    assert model.generation.temperature == 0.6
    names = {path.name for path in directory.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    again, same = from_pretrained(run(settings), dtype="float32")  # nothing left to do: exports again
    jax.tree.map(np.testing.assert_array_equal, params, same)
    assert again.config == model.config
    says = (
        r"got one that differs in optimizer.b1 \(0.9 there, 0.5 now\); steps \(4 there, 9 now\): choose another run_dir"
    )
    with pytest.raises(ValueError, match=says):
        run(dataclasses.replace(settings, steps=9, optimizer=dataclasses.replace(settings.optimizer, b1=0.5)))


def test_weight_decay_spares_the_norms_in_both_layouts() -> None:
    for layout in ("stacked", "unrolled"):
        specs = spec_tree(ModelConfig.from_hf(MODEL), layout)
        mask = decay_mask(jax.tree.map(lambda _: 0, specs, is_leaf=lambda leaf: hasattr(leaf, "shape")))
        flat = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(mask)}
        assert {leaf for name, leaf in flat.items() if "norm" in name} == {False}
        assert {leaf for name, leaf in flat.items() if "norm" not in name} == {True}


def test_learning_rate_warms_up_and_falls() -> None:
    settings = config(Path("unused"), steps=100, optimizer={"warmup_steps": 10, "learning_rate": 1.0})
    with jax.numpy_dtype_promotion("standard"):
        rates = [float(schedule(settings.optimizer, 100)(step)) for step in (0, 5, 10, 55, 100)]
    np.testing.assert_allclose(rates, [0.0, 0.5, 1.0, 0.51, 0.02], atol=1e-3)
    with pytest.raises(ValueError, match="warmup_steps must be below steps=5, got 10"):
        schedule(settings.optimizer, 5)


def test_prefetch_raises_what_its_thread_raised() -> None:
    def stream() -> Any:
        yield None, {0: 1}
        raise ValueError("no more")

    ahead = prefetch(stream())
    assert next(ahead)[1] == {0: 1}
    with pytest.raises(ValueError, match="no more"):
        next(ahead)


def test_uneven_experts_show_by_expert_and_by_device() -> None:
    """Two layers; the worse one counts. Experts 0 and 1 are on the first device."""
    load = (jnp.asarray([[4, 0, 2, 2]]), jnp.asarray([[3, 3, 1, 1]]))
    uneven = {"expert_load": [0.4375, 0.1875, 0.1875, 0.1875], "expert_load_max": 2.0, "expert_load_entropy": 0.75}
    assert balance(load, 1) == {**uneven, "device_load": [1.0], "device_load_max": 1.0}
    assert balance(load, 2) == {**uneven, "device_load": [0.625, 0.375], "device_load_max": 1.5}
    assert balance((), 2) == {}


def test_remat_that_cpu_undoes_is_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="remat=full has next to no effect on CPU with layout=unrolled"):
        _warn_of_remat(config(tmp_path, remat="full"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _warn_of_remat(config(tmp_path, remat="full", layout="stacked"))
