"""Real processes, two devices each: what they load, answer, learn and save together is what one process makes of it."""

import dataclasses
import json
import signal
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from qwen3_jax.checkpoints.adapters import WEIGHTS, save_adapters
from qwen3_jax.checkpoints.load import from_pretrained, save_pretrained
from qwen3_jax.generation_defaults import GenerationDefaults
from qwen3_jax.network.model import Qwen3
from qwen3_jax.parameters.adapters import init_adapters, make_lora
from qwen3_jax.text.tokenizer import load_tokenizer
from qwen3_jax.train.loop import train
from tests.distributed import worker
from tests.distributed.launch import Ended, free_port, launch, running
from tests.tiny import dense_config, random_params, write_tokenizer

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
    lora = make_lora(config, 2, 4, "all-linear")
    drawn = init_adapters(config, lora, "stacked", jax.random.key(0))
    save_adapters(directory / "adapters", model.clone(lora=lora), jax.tree.map(lambda x: x + 0.5, drawn))
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


def test_adapters_are_saved_again_bit_for_bit(job: Job, alone: Alone) -> None:
    ours, theirs = (
        load_file(path / WEIGHTS) for path in (job.directory / "adapters-again", alone.directory / "adapters")
    )
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


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
from qwen3_jax.sharding.launch.distributed import start
from qwen3_jax.sharding.launch.processes import gather

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


LOOPS = """
import sys, time
from qwen3_jax.cli.boundary import guarded
from qwen3_jax.sharding.launch.distributed import start
from qwen3_jax.sharding.launch.processes import gather

def action():
    start(sys.argv[1], 2, int(sys.argv[2]), 60, heartbeat=5)
    gather(0)
    print("looping", flush=True)
    while True:
        gather(0)
        time.sleep(0.05)

sys.exit(guarded(action))
"""


def end_one_of_two(victim: int, how: signal.Signals) -> tuple[Ended, float]:
    """What the other one says when one is sent a signal in the middle of its work, and after how many seconds."""
    address = f"127.0.0.1:{free_port()}"
    with running([["-c", LOOPS, address, str(i)] for i in range(2)]) as processes:
        for process in processes:
            assert process.stdout is not None
            assert any(line == "looping\n" for line in process.stdout)  # the network library prints too
        began = time.monotonic()
        processes[victim].send_signal(how)
        out, err = processes[1 - victim].communicate(timeout=60)
        return Ended(processes[1 - victim].returncode, out, err), time.monotonic() - began


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_process_that_is_gone_ends_the_other_at_once(how: signal.Signals) -> None:
    other, seconds = end_one_of_two(1, how)
    assert other.status == 1
    assert other.err.splitlines()[-1].startswith("error: another process of this job has ended, see what it said")
    assert "Traceback" not in other.err
    assert seconds < 30  # within milliseconds on a quiet machine; the network tells it


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_falls_silent_ends_the_other_after_the_heartbeat_timeout(victim: int) -> None:
    """A machine that vanishes closes no connection; a stopped process is like it. JAX ends the other one from C++."""
    other, seconds = end_one_of_two(victim, signal.SIGSTOP)
    assert other.status == -signal.SIGABRT
    assert "Terminating process because the JAX distributed service detected fatal errors" in other.err
    # Process 0 keeps the list; the others only know that it does not answer.
    named = "unhealthy (stopped sending heartbeats):\n1\n" if victim == 1 else "CoordinationService/Heartbeat"
    assert named in other.err
    assert 2 < seconds < 40  # 5 on a quiet machine


SAVES = """
import sys
from qwen3_jax.checkpoints import save as export
from qwen3_jax.checkpoints.load import from_pretrained, save_pretrained
from qwen3_jax.cli.boundary import guarded
from qwen3_jax.sharding import parse_mesh
from qwen3_jax.sharding.launch.distributed import start
from qwen3_jax.sharding.launch.processes import is_first

address, process, checkpoint, out = sys.argv[1:]

def action():
    start(address, 2, int(process), 60)
    model, params = from_pretrained(checkpoint, dtype="float32", mesh=parse_mesh("fsdp=4").build(), layout="stacked")
    write = export.write_sharded

    def breaks(stage, tensors, limit):
        write(stage, tensors[: len(tensors) // 2], limit)  # some of it lies there when the disk is full
        raise OSError(28, "No space left on device", str(stage))

    if is_first():
        export.write_sharded = breaks
    save_pretrained(out, model, params)
    return 0

sys.exit(guarded(action))
"""


def test_a_write_that_fails_on_process_0_ends_all_and_leaves_nothing(alone: Alone, tmp_path: Path) -> None:
    kept = tmp_path / "model"
    kept.mkdir()
    (kept / "config.json").write_text("{}", encoding="utf-8")  # what an earlier export left stays
    words = ["-c", SAVES, f"127.0.0.1:{free_port()}"]
    places = [str(alone.directory / "checkpoint"), str(kept)]
    ended = launch([[*words, str(i), *places] for i in range(2)], 120, **QUICK)
    for process in ended:
        assert process.status == 1
        assert "Traceback" not in process.err
        assert "No space left on device" in process.err.splitlines()[-1]
    assert "(on process 0)" in ended[1].err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in kept.iterdir()] == ["config.json"]
    assert (kept / "config.json").read_text(encoding="utf-8") == "{}"
