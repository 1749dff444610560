"""Real processes, two devices each: what they load, answer, learn and save together is what one process makes of it."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from qwen3_jax.checkpoint import from_pretrained, save_pretrained
from qwen3_jax.generation_defaults import GenerationDefaults
from qwen3_jax.model import Qwen3
from qwen3_jax.tokenizer import load_tokenizer
from tests.distributed import worker
from tests.distributed.launch import free_port, launch
from tests.tiny import dense_config, random_params, write_tokenizer
from train.loop import train

WORKER = str(Path(worker.__file__))
STEPS, STREAMS = 3, 4
# Quick to compile; what is compared does not depend on it.
QUICK = {"XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"}


MESHES = {2: {"fsdp": 2, "tensor": 2}, 4: {"data": 2, "fsdp": 2, "tensor": 2}}


@dataclasses.dataclass(frozen=True)
class Alone:
    """The work in this process, on one device."""

    directory: Path
    settings: dict[str, Any]
    answers: list[dict[str, Any]]
    examples: int


@dataclasses.dataclass(frozen=True)
class Job:
    """The same work by several processes."""

    processes: int
    directory: Path
    answers: list[dict[str, Any]]
    examples: list[int]


def metrics(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    directory = tmp_path_factory.mktemp("alone")
    config = dense_config()
    tok = load_tokenizer(write_tokenizer(directory / "tokenizer"))
    model = Qwen3(config, generation=GenerationDefaults(eos_token_ids=(config.vocab_size - 1,)))
    save_pretrained(directory / "checkpoint", model, random_params(config, "stacked"), tokenizer=tok)
    settings = {
        "steps": STEPS,
        "model": config.to_hf(),
        "layout": "stacked",
        "data": {"rows": 8, "length": 32, "streams": STREAMS, "lookahead": 1.0, "threads": 0},
        "optimizer": {"warmup_steps": 0},
        "report": {"every": 1},
        "checkpoint_every": 2,
    }
    answers = worker.answers(directory / "checkpoint", None, directory / "again")
    examples = worker.trained(settings | {"run_dir": str(directory / "run")}, directory / "trained")
    return Alone(directory, settings, answers, examples)


@pytest.fixture(scope="module", params=MESHES, ids=lambda count: f"{count} processes")
def job(request: pytest.FixtureRequest, alone: Alone, tmp_path_factory: pytest.TempPathFactory) -> Job:
    processes, mesh, directory = request.param, MESHES[request.param], tmp_path_factory.mktemp("job")
    description = {
        "coordinator": f"127.0.0.1:{free_port()}",
        "num_processes": processes,
        "mesh": ",".join(f"{axis}={size}" for axis, size in mesh.items()),
        "checkpoint": str(alone.directory / "checkpoint"),
        "out": str(directory),
        "train": alone.settings | {"run_dir": str(directory / "run"), "mesh": mesh},
    }
    (directory / "job.json").write_text(json.dumps(description), encoding="utf-8")
    ended = launch([[WORKER, str(directory / "job.json"), str(i)] for i in range(processes)], 400, **QUICK)
    assert [process.status for process in ended] == [0] * processes, "\n".join(process.err for process in ended)
    assert all("step 1" not in process.out for process in ended[1:])  # process 0 prints for all
    return Job(processes, directory, **json.loads((directory / "result.json").read_text(encoding="utf-8")))


def same_parameters(ours: Path, theirs: Path, tolerance: float) -> None:
    (_, one), (_, other) = (from_pretrained(path, dtype="float32", layout="stacked") for path in (ours, theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance, rtol=0), one, other)


def test_answers_are_those_of_one_process(job: Job, alone: Alone) -> None:
    assert json.loads(json.dumps(alone.answers)) == job.answers
    assert job.answers[1]["budget_exhausted"]


def test_what_was_loaded_is_saved_again_bit_for_bit(job: Job, alone: Alone) -> None:
    same_parameters(job.directory / "again", alone.directory / "checkpoint", 0.0)


def test_training_is_that_of_one_process(job: Job, alone: Alone) -> None:
    ours, theirs = metrics(job.directory / "run"), metrics(alone.directory / "run")
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == [1, 2, 3]
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose([line[name] for line in ours], [line[name] for line in theirs], rtol=5e-5)
    same_parameters(job.directory / "trained", alone.directory / "trained", 2e-4)


def test_each_process_makes_its_own_share_of_the_data(job: Job, alone: Alone) -> None:
    assert len(job.examples) == job.processes
    share = alone.examples / job.processes  # `tensor`, along which rows are shared, lies within a process
    assert all(abs(count - share) <= 0.5 * share for count in job.examples)


def test_one_process_goes_on_from_the_checkpoint_of_many(job: Job, alone: Alone, tmp_path: Path) -> None:
    run = job.directory / "run"
    assert sorted(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit()) == [2, 3]
    if job.processes > 2:
        return  # once is enough
    resumed = tmp_path / "run"
    (resumed / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "2").rename(resumed / "checkpoints" / "2")
    source = worker.Words(alone.settings["model"]["vocab_size"])
    settings = worker.parse(worker.TrainConfig, alone.settings | {"run_dir": str(resumed)})
    model, state = train(settings, worker.endless_data(settings, source))
    assert metrics(resumed)[-1]["step"] == 3
    np.testing.assert_allclose(metrics(resumed)[-1]["loss"], metrics(run)[-1]["loss"], rtol=5e-5)
    save_pretrained(tmp_path / "model", model, state.params)
    same_parameters(tmp_path / "model", job.directory / "trained", 2e-4)


def test_a_host_that_never_arrives_is_named_in_time(tmp_path: Path) -> None:
    words = ["-m", "qwen3_jax.cli", "train", "pocket", f"run_dir={tmp_path}", "--mesh", "data=-1"]
    words += ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", "3", "--start-timeout", "6"]
    began = time.monotonic()
    ended = launch([[*words, "--process-id", str(i)] for i in (0, 2)], 200)
    assert time.monotonic() - began < 150  # mostly imports on a busy machine
    for process in ended:
        assert (process.status, process.out) == (2, "")
        assert process.err.startswith("error: all 3 processes must start within 6 s")
        assert process.err.count("\n") == 1
        assert "Traceback" not in process.err
    assert "in vain at 127.0.0.1" in ended[0].err
    assert "with the ids 1" in ended[0].err
    assert not list(tmp_path.iterdir())


FAILS = """
import sys
from qwen3_jax.cli.boundary import guarded
from sharding.distributed import start
from sharding.processes import gather

def action():
    start(sys.argv[1], 2, int(sys.argv[2]), 60)
    gather(1)
    if sys.argv[2] == "1":
        raise ValueError("this one fails")
    gather(2)
    return 0

sys.exit(guarded(action))
"""


def test_a_process_that_fails_ends_the_other() -> None:
    address = f"127.0.0.1:{free_port()}"
    ended = launch([["-c", FAILS, address, str(i)] for i in range(2)], 120, QWEN3_JAX_HEARTBEAT_TIMEOUT="10")
    assert ended[1].status == 2
    assert ended[1].err.splitlines()[-1] == "error: this one fails"
    assert ended[0].status not in (0, None)
