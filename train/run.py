"""One training run from a configuration: where it begins, tokenizer, data, loop, export."""

import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from qwen3_jax.config import ModelConfig
from qwen3_jax.sharding.launch.processes import first_does
from qwen3_jax.text.tokenizer import load_tokenizer
from qwen3_jax.train.config import TrainConfig, load_config
from qwen3_jax.train.data import Data, claim_data, make_data
from qwen3_jax.train.export import export_adapters, export_model
from qwen3_jax.train.full_disk import is_full_disk
from qwen3_jax.train.initial import load_initial, resolve, source_of
from qwen3_jax.train.loop import Initial, train
from qwen3_jax.train.lora import claim_base
from qwen3_jax.train.run_dir import Lock, begun, claim, stored_config
from qwen3_jax.train.stop import Stop, Stopped
from qwen3_jax.train.tokenizer import write_tokenizer
from qwen3_jax.train.without_effect import warn_without_effect

USAGE = "usage: python -m qwen3_jax.train CONFIG.yaml run_dir=DIR [key=value ...]"


def run(config: TrainConfig) -> Path | None:
    """Trains, resuming what `run_dir` holds, and exports the model in Hugging Face form.

    Many processes call this together, after `sharding.launch.distributed.start`; they must see the same `run_dir`.

    Returns:
      `run_dir/model`, a directory that `from_pretrained` and transformers load, `run_dir/adapter` in PEFT's form where
      adapters were trained, or `run_dir` where the model has no such form; None after SIGTERM, when the state is saved
      and there is nothing to export yet.

    Raises:
      ValueError: no run_dir, a vocabulary that does not fit, `run_dir` holds a run of another configuration, or another
        process trains in it.
      FloatingPointError: the loss or the gradient is not finite.
      OSError: the disk is full.
    """
    if not config.run_dir:
        raise ValueError("run_dir must be set, got nothing: add run_dir=DIR to the command")
    run_dir = Path(config.run_dir)
    earlier = stored_config(run_dir) if begun(run_dir) else None
    config = resolve(config, None if earlier is None else earlier.model)
    ModelConfig.from_hf(config.model)  # a mistake in it shows before anything is written
    _check_vocabulary(config)
    with Stop() as stop, Lock(run_dir):
        try:
            with stop.at_once():
                data = _make_ready(config, run_dir)
        except Stopped:
            print(
                "asked to stop before the first step: what was counted of the data is kept; give the same command again"
            )
            return None
        model, state = train(config, data, _initial(config), stop)
        if int(state.step) < config.steps:
            return None
        if model.lora is not None:
            return export_adapters(run_dir, run_dir / "adapter", model, state.averaged)
        if not config.ablation.qk_norm:
            warnings.warn("the model without QK-Norm is not exported: Hugging Face has no form for it", stacklevel=2)
            return run_dir
        directory = run_dir / "model"
        export_model(run_dir, directory, model, state.averaged)
        return directory


def _make_ready(config: TrainConfig, run_dir: Path) -> Data:
    """What comes before the first step: claims the directory, makes the tokenizer, counts the data."""
    first_does(partial(claim, run_dir, config))
    first_does(partial(claim_data, run_dir, config))
    if config.lora is not None:
        first_does(partial(claim_base, run_dir, config.init_from, source_of(config.init_from)))
    first_does(partial(write_tokenizer, run_dir / "tokenizer", config))
    return make_data(config, load_tokenizer(run_dir / "tokenizer"))


def _initial(config: TrainConfig) -> Initial | None:
    return partial(load_initial, config) if config.init_from else None


def _check_vocabulary(config: TrainConfig) -> None:
    """Of a tokenizer that the run makes itself."""
    size = config.model.get("vocab_size", 0)
    if not (config.tokenizer.path or config.init_from) and config.tokenizer.vocab_size > size:
        raise ValueError(
            f"tokenizer.vocab_size must be at most model.vocab_size={size}, got {config.tokenizer.vocab_size}: lower it"
        )


def main(argv: Sequence[str]) -> int:
    """The command; 0 when the run is done or was asked to stop, 2 with one line for a user's mistake, 1 where training
    broke down."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    try:
        config = load_config(argv[0], argv[1:])
        warn_without_effect(config)
        directory = run(config)
        if directory is not None:
            print(directory)
    except (FloatingPointError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, FloatingPointError) or is_full_disk(error) else 2
    return 0
