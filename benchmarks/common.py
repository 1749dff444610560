"""What the benchmarks share: the machine's name and speed, memory, and rounds in which contestants take turns."""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
GROUP = 8  # decode steps timed together


def fastest(run: Callable[[], Any], times: int) -> float:
    """Least seconds of several runs: other load on the machine only ever adds."""
    best = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - began)
    return best


def peak_rss() -> float:
    """Most memory this process has had resident, in bytes; mapped files count once they are touched.

    Linux hands `ru_maxrss` down to a child, so that one started by a large process would look large: the high-water
    mark of the process's own memory is read where there is one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return 1024.0 * next(
            int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":")[1].strip() if names else platform.machine()


def read_bandwidth() -> float:
    """Bytes per second at which this device reads weights: on CPU a float32 matrix met by one row, elsewhere a copy
    (which reads and writes, so its bytes count twice). Imports jax."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones((65536, 1024), jnp.float32)
    if jax.default_backend() == "cpu":
        row = jnp.ones((1, 1024), jnp.float32)
        product = jax.jit(lambda x, row: row @ x.T)
        return x.nbytes / fastest(lambda: product(x, row).block_until_ready(), 20)
    x = jnp.ones((16 * 65536, 1024), jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    return 2 * x.nbytes / fastest(lambda: copy(x).block_until_ready(), 20)


def run_json(command: Sequence[str], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Runs a contestant in a process of its own and returns what it printed last, a JSON object; its seconds count from
    before the process starts, so that starting up is part of them."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {}), "BENCHMARK_STARTED": repr(time.time())}
    done = subprocess.run(list(command), env=env, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def since_start() -> float:
    """Seconds since `run_json` started this process."""
    return time.time() - float(os.environ["BENCHMARK_STARTED"])


def made_by(module: str) -> str:
    """The line that says how a result was made: the command, without this machine's paths."""
    arguments = [".../" + Path(argument).name if "/" in argument else argument for argument in sys.argv[1:]]
    return f"Made by `{' '.join(['python -m', module, *arguments])}`."


def merge_best(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Least of every time over the rounds, most of every memory; other values from the last round."""
    best: dict[str, Any] = {}
    for result in results:
        for key, value in result.items():
            numeric = isinstance(value, int | float) and key in best
            better = max if key.endswith(("_rss", "_peak")) else min
            best[key] = better(value, best[key]) if numeric else value
    return best


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]
