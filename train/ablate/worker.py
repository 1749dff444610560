"""One run of an ablation, in a process of its own: `python -m qwen3_jax.train.ablate.worker DIRECTORY`.

DIRECTORY holds run.yaml, the resolved configuration. The run goes on from its newest checkpoint, is measured, and
leaves result.json, which is written beside and renamed: where it stands, the run is done. Only one process works in a
directory at a time; another one waits for it, and finds it done.
"""

import contextlib
import fcntl
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_jax.compile_cache import enable_compile_cache
from qwen3_jax.config import ModelConfig
from qwen3_jax.files import write_json
from qwen3_jax.parameters.specs import num_parameters
from qwen3_jax.text.tokenizer import load_tokenizer
from qwen3_jax.train.ablate.measure import measure
from qwen3_jax.train.ablate.runner import CONFIG, RESULT, finite, read_metrics
from qwen3_jax.train.ablate.study import identity
from qwen3_jax.train.config import TrainConfig, load_config
from qwen3_jax.train.data import Batch, make_data
from qwen3_jax.train.run import load_trained, run
from qwen3_jax.train.run_dir import stored_config

_LAST = 0.1  # share of the steps whose mean is the training loss at the end


def work(directory: Path) -> None:
    """Trains, measures, and writes the result, unless it is there.

    Raises:
      what training raises, but for a loss that is not finite, which is a result.
    """
    with _alone(directory):
        if (directory / RESULT).exists():
            return
        asked = config = load_config(directory / CONFIG)
        began = time.perf_counter()
        reason, held_out = "", {}
        try:
            if run(config) is None:
                return  # asked to stop; the next process goes on
            # From the checkpoint: a run without a Hugging Face form has no other parameters.
            model, params, _ = load_trained(Path(config.run_dir), mesh=config.mesh)
            held_out = measure(model, params, *held_out_batches(resolved(config)))
        except FloatingPointError as error:
            reason = str(error)
        config = resolved(config)
        measures = curve_measures(read_metrics(directory / "metrics.jsonl")) | held_out
        reason = reason or divergence(measures, ModelConfig.from_hf(config.model).vocab_size)
        result = {
            "status": "diverged" if reason else "finished",
            "reason": reason,
            "measures": measures | sizes(config),
            "seconds": round(time.perf_counter() - began, 1),
            "config": identity(asked),
        }
        write_json(directory / RESULT, finite(result))


def resolved(config: TrainConfig) -> TrainConfig:
    """The run's configuration with the whole of its model's config.json, also where it began with another's."""
    return stored_config(Path(config.run_dir)) or config


def held_out_batches(config: TrainConfig) -> tuple[list[Batch], tuple[str, ...]]:
    """The run's evaluation data and the names of its domains, on one device."""
    data = make_data(config, load_tokenizer(Path(config.run_dir) / "tokenizer"))
    return [share.place(None) for share in data.held_out(range(config.data.streams))], data.domain_names


def divergence(measures: dict[str, Any], vocab_size: int) -> str:
    """Why a run whose losses are finite counts as diverged; "" when it does not.

    It ends, in training or on held-out data, above the loss of somebody who gives every token the same probability:
    log of the vocabulary's size.
    """
    limit = math.log(vocab_size)
    for name in ("train_loss", "held_out_loss"):
        value = measures.get(name)
        if value is not None and not value <= limit:
            return f"{name} ends at {value:.3f}, above {limit:.3f}, the loss of a uniform guess"
    return ""


def curve_measures(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`train_loss` (mean of the last tenth of the steps) and `tokens_per_second` (median, without the first tenth)."""
    if not lines:
        return {}
    part = max(1, round(_LAST * len(lines)))
    rates = [line["tokens_per_second"] for line in lines[part:] or lines]
    return {
        "train_loss": float(np.mean([line["loss"] for line in lines[-part:]])),
        "tokens_per_second": float(np.median(rates)),
    }


def sizes(config: TrainConfig) -> dict[str, int]:
    """`parameters` and `active_parameters`, of one token."""
    model = ModelConfig.from_hf(config.model)
    return {"parameters": num_parameters(model), "active_parameters": num_parameters(model, active=True)}


def main(argv: Sequence[str]) -> int:
    """0 when the result stands, 2 with one line for a mistake in the configuration."""
    enable_compile_cache()
    try:
        work(Path(argv[0]))
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Holds the directory's lock, which the system gives back however this process ends."""
    with (directory / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
