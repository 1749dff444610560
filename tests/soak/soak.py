"""Kills a training run again and again, and looks whether anything is lost; then whether a long run's memory grows.

`make soak` kills ten times at random steps. `SOAK_MINUTES=30 make soak` goes on for 30 minutes, SIGTERM among the
kills, with half of the time for the memory of two runs that are left alone side by side: one saves at the default
interval and must not grow; one, as often as the runs that are killed, shows what a save costs. `--out FILE` writes the
result down.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import psutil
import yaml

from qwen3_jax.train.config import TrainConfig
from tests.soak.memory import Growth, growth
from tests.soak.verdict import Verdict, report

REPO = Path(__file__).parents[2]
STEPS, INTERVAL = 600, 20
JUDGED_INTERVAL = TrainConfig.checkpoint_every  # of the run whose memory must not grow
MODEL = {
    "model_type": "qwen3_moe",
    "vocab_size": 768,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
CONFIG = {
    "seed": 7,
    "steps": STEPS,
    "model": MODEL,
    "tokenizer": {"vocab_size": 760, "corpus_size": 800},
    "data": {"rows": 4, "length": 256},
    "optimizer": {"warmup_steps": 20},
    "evaluation": {"every": 50, "batches": 2},
}


class Run:
    """A training run in a directory of its own, in a process that can be killed."""

    def __init__(self, root: Path, name: str, steps: int = STEPS, interval: int = INTERVAL) -> None:
        self.run_dir = root / name
        config = root / f"{name}.yaml"
        config.write_text(yaml.safe_dump(CONFIG | {"steps": steps, "checkpoint_every": interval}), encoding="utf-8")
        self._words = [sys.executable, "-m", "qwen3_jax.cli", "train", str(config), f"run_dir={self.run_dir}"]
        self._log = (root / f"{name}.log").open("a")
        cache = {"QWEN3_JAX_COMPILATION_CACHE_DIR": str(root / "compiled")}
        self._environment = os.environ | cache | {"PYTHONPATH": str(REPO)}

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._words, cwd=REPO, env=self._environment, stdout=self._log, stderr=self._log, start_new_session=True
        )

    def last_step(self) -> int:
        """Of the last whole line of metrics.jsonl; 0 without one."""
        path = self.run_dir / "metrics.jsonl"
        if not path.exists():
            return 0
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().split(b"\n")[:-1]
        with contextlib.suppress(ValueError, KeyError):
            return int(json.loads(lines[-1])["step"]) if lines else 0
        return 0

    def checkpoint(self) -> int:
        """The newest whole checkpoint; 0 without one."""
        directory = self.run_dir / "checkpoints"
        found = [int(path.name) for path in directory.glob("*") if path.name.isdigit()]
        return max(found, default=0)

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run_dir / "metrics.jsonl").read_text().splitlines()]

    def weights(self) -> bytes:
        return (self.run_dir / "model" / "model.safetensors").read_bytes()


def wait_for(run: Run, process: subprocess.Popen[bytes], step: int) -> None:
    """Returns when the step has been reported, or the process has ended."""
    while process.poll() is None and run.last_step() < step:
        time.sleep(0.005)


def finish(run: Run) -> None:
    status = run.start().wait(600)
    assert status == 0, f"{run.run_dir}: the run must end with 0, got {status}"


def interrupted(run: Run, rng: random.Random, kills: int, verdict: Verdict, terminate: float) -> None:
    """Takes a run to its end through `kills` interruptions, a share of them SIGTERM, at random steps and moments."""
    for at in sorted(rng.sample(range(1, STEPS), kills)):
        process = run.start()
        began = time.monotonic()
        if rng.random() < 0.15:  # while it starts: imports, compilation, restoring, cleaning
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0.2, 8.0))
        else:
            wait_for(run, process, at)
            time.sleep(rng.uniform(0.0, 0.1))  # anywhere within steps and saves
        if process.poll() is not None:
            assert process.returncode == 0, f"{run.run_dir}: got {process.returncode} before it was killed"
            break
        if rng.random() < terminate and time.monotonic() - began > 8.0:
            asked = time.monotonic()
            process.send_signal(signal.SIGTERM)
            status = process.wait(60)
            assert status == 0, f"{run.run_dir}: SIGTERM must end with 0, got {status}"
            verdict.terminated(time.monotonic() - asked, run.last_step() - run.checkpoint())
        else:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            verdict.killed(run.last_step() - run.checkpoint())
    finish(run)


def compare(run: Run, reference: Run) -> None:
    """What the run left is what the one without a break left: every line, the parameters, nothing else."""
    ours, theirs = run.records(), reference.records()
    assert [record["step"] for record in ours] == list(range(1, STEPS + 1))
    for key in ("loss", "grad_norm", "learning_rate", "expert_load_max", "eval_loss"):
        assert [record.get(key) for record in ours] == [record.get(key) for record in theirs], key
    assert run.weights() == reference.weights()
    left = [path.name for path in (run.run_dir / "checkpoints").iterdir() if not path.name.isdigit()]
    assert not left, left


def left_alone(root: Path, minutes: float) -> list[Growth]:
    """Resident memory, every second, of one run for each interval, side by side."""
    intervals = (JUDGED_INTERVAL, INTERVAL)
    runs = [Run(root, f"alone{interval}", steps=100_000_000, interval=interval) for interval in intervals]
    processes = [run.start() for run in runs]
    watched = [psutil.Process(process.pid) for process in processes]
    samples: list[list[tuple[float, int, int]]] = [[] for _ in runs]
    began = time.monotonic()
    try:
        while time.monotonic() - began < 60 * minutes:
            for i, run in enumerate(runs):
                assert processes[i].poll() is None, f"{run.run_dir}: the run must go on while it is watched"
                samples[i].append((time.monotonic() - began, watched[i].memory_info().rss, run.last_step()))
            time.sleep(1.0)
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        statuses = [process.wait(60) for process in processes]
    assert statuses == [0] * len(runs), f"SIGTERM must end with 0, got {statuses}"
    return [growth(taken, interval) for taken, interval in zip(samples, intervals, strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=float(os.environ.get("SOAK_MINUTES", "0")))
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--out", type=Path, help="a Markdown file for the result")
    args = parser.parse_args()
    rng, began = random.Random(args.seed), time.monotonic()
    verdict, memory = Verdict(interval=INTERVAL, steps=STEPS, seed=args.seed), list[Growth]()
    root = Path(tempfile.mkdtemp(prefix="soak."))
    print(f"seed {args.seed}, in {root}", flush=True)
    reference = Run(root, "reference")
    finish(reference)
    while True:
        run = Run(root, f"run{verdict.runs}")
        interrupted(run, rng, args.kills, verdict, terminate=0.3 if args.minutes else 0.0)
        compare(run, reference)
        verdict.runs += 1
        shutil.rmtree(run.run_dir)
        print(verdict.line(), flush=True)
        if time.monotonic() - began > 60 * args.minutes * 0.5:
            break
    if args.minutes:
        memory = left_alone(root, args.minutes * 0.5)
        print("\n".join(grown.line() for grown in memory), flush=True)
    text = report(verdict, memory, args.minutes, f"{platform.machine()}, {os.cpu_count()} cores")
    if args.out is not None:
        args.out.write_text(text, encoding="utf-8")
    shutil.rmtree(root)
    return 0 if all(grown.passes for grown in memory if grown.interval == JUDGED_INTERVAL) else 1


if __name__ == "__main__":
    sys.exit(main())
