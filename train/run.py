"""One training run from a configuration: what comes before the first step, the loop, and the export of its model."""

import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from qwen3_jax.checkpoints.adapters import save_adapters
from qwen3_jax.checkpoints.load import read_generation, save_pretrained
from qwen3_jax.config import ModelConfig
from qwen3_jax.generation_defaults import GenerationDefaults
from qwen3_jax.network.model import Qwen3
from qwen3_jax.parameters.specs import Params
from qwen3_jax.sharding import MeshConfig
from qwen3_jax.sharding.launch.processes import first_does, is_first
from qwen3_jax.text.tokenizer import Tokenizer, load_tokenizer
from qwen3_jax.train.checkpoints import committed, is_full_disk
from qwen3_jax.train.config import TrainConfig, load_config, without_effect
from qwen3_jax.train.data import Data, claim_data, make_data
from qwen3_jax.train.initial import (
    GENERATION,
    claim_base,
    load_initial,
    noted_base,
    resolve,
    source_of,
    write_tokenizer,
)
from qwen3_jax.train.loop import make_training_mesh, train
from qwen3_jax.train.run_dir import Lock, begun, claim, stored_config
from qwen3_jax.train.state import abstract_state
from qwen3_jax.train.step import make_model
from qwen3_jax.train.stop import Stop, Stopped

USAGE = "usage: qwen3-jax train CONFIG.yaml run_dir=DIR [key=value ...]"


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
        model, state = train(config, data, partial(load_initial, config) if config.init_from else None, stop)
        if int(state.step) < config.steps:
            return None
        if model.lora is None and not config.ablation.qk_norm:
            warnings.warn("the model without QK-Norm is not exported: Hugging Face has no form for it", stacklevel=2)
            return run_dir
        return export(run_dir, run_dir / ("model" if model.lora is None else "adapter"), model, state.averaged)


def command(config: TrainConfig) -> None:
    """Warns of settings without effect, runs, and prints the directory; of many processes the first one speaks."""
    if is_first():
        for line in without_effect(config):
            warnings.warn(line, stacklevel=2)
    directory = run(config)
    if is_first() and directory is not None:
        print(directory)


def main(argv: Sequence[str]) -> int:
    """The command, without flags; 0 when the run is done or was asked to stop, 2 with one line for a user's mistake, 1
    where training broke down."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    try:
        command(load_config(argv[0], argv[1:]))
    except (FloatingPointError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, FloatingPointError) or is_full_disk(error) else 2
    return 0


def export(run_dir: Path, directory: Path, model: Qwen3, params: Params) -> Path:
    """Writes a run's model, or its adapters in PEFT's form, with its tokenizer; many processes call it together."""
    tok = load_tokenizer(run_dir / "tokenizer")
    if model.lora is None:
        generation = generation_defaults(tok, run_dir / "tokenizer")
        save_pretrained(directory, model.clone(generation=generation), params, tok)
    else:
        save_adapters(directory, model, params, noted_base(run_dir))
        first_does(lambda: tok.save(directory))
    return directory


def export_step(run_dir: Path, directory: Path, step: int | None = None, mesh: MeshConfig | None = None) -> int:
    """Writes the model (or its adapters) as it was after a step that has a checkpoint; the run may still be going on.

    Arguments and errors are those of `load_trained`; returns the step.
    """
    model, params, found = load_trained(run_dir, step, mesh)
    export(run_dir, directory, model, params)
    return found


def load_trained(run_dir: Path, step: int | None = None, mesh: MeshConfig | None = None) -> tuple[Qwen3, Params, int]:
    """The network of a run, what was trained of it (averaged where there is an average) and the step of the checkpoint.

    The optimizer's state is not read.

    Args:
      step: None takes the newest.
      mesh: devices to spread the parameters over; one by default, whatever mesh the run has.

    Raises:
      FileNotFoundError: no run there, or one without a checkpoint.
      ValueError: no checkpoint of this step.
    """
    config = stored_config(run_dir)
    if config is None:
        raise FileNotFoundError(f"{run_dir} must be the run_dir of a run, got no config.yaml there: correct the path")
    built = make_training_mesh(mesh or MeshConfig())
    model = make_model(config, built)
    state = abstract_state(model, config, built)
    name = "params" if state.ema is None else "ema"
    wanted = {name: getattr(state, name)}
    found, path = committed(run_dir / "checkpoints", step)
    restore = ocp.args.PyTreeRestore(
        item=wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        params = checkpointer.restore(path, args=restore)[name]
    return model, jax.block_until_ready(params), found


def generation_defaults(tok: Tokenizer, directory: Path) -> GenerationDefaults:
    """Those that the run took over with its tokenizer, else what Qwen3's hybrid releases have, with this one's ids."""
    if (directory / GENERATION).exists():
        return read_generation(directory)
    end = tok.token_to_id("<|endoftext|>")
    return GenerationDefaults(
        eos_token_ids=tuple(dict.fromkeys(token for token in (tok.eos_token_id, end) if token is not None)),
        bos_token_id=end,
        pad_token_id=end,
        temperature=0.6,
        top_k=20,
        top_p=0.95,
    )


def _make_ready(config: TrainConfig, run_dir: Path) -> Data:
    """What comes before the first step: claims the directory, makes the tokenizer, counts the data."""
    first_does(partial(claim, run_dir, config))
    first_does(partial(claim_data, run_dir, config))
    if config.lora is not None:
        first_does(partial(claim_base, run_dir, config.init_from, source_of(config.init_from)))
    first_does(partial(write_tokenizer, run_dir / "tokenizer", config))
    return make_data(config, load_tokenizer(run_dir / "tokenizer"))


def _check_vocabulary(config: TrainConfig) -> None:
    """Of a tokenizer that the run makes itself."""
    size = config.model.get("vocab_size", 0)
    if not (config.tokenizer.path or config.init_from) and config.tokenizer.vocab_size > size:
        raise ValueError(
            f"tokenizer.vocab_size must be at most model.vocab_size={size}, got {config.tokenizer.vocab_size}: lower it"
        )
