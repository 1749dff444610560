"""One training run from a configuration: where it begins, tokenizer, data, loop, export."""

import shutil
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from qwen3_jax.config import ModelConfig
from qwen3_jax.export import staged
from qwen3_jax.paths import pocket_path
from qwen3_jax.tokenizer import Tokenizer, load_tokenizer
from sharding.processes import first_does
from train.config import TrainConfig, load_config
from train.data import make_data
from train.export import GENERATION, export_model, exported_params
from train.full_disk import is_full_disk
from train.initial import load_initial, resolve, source_of
from train.loop import Initial, train
from train.pocket import tokenizer as pocket_tokenizer
from train.run_dir import Lock, claim, stored_config
from train.stop import Stop

USAGE = "usage: python -m train CONFIG.yaml run_dir=DIR [key=value ...]"


def run(config: TrainConfig) -> Path | None:
    """Trains, resuming what `run_dir` holds, and exports the model in Hugging Face form.

    Many processes call this together, after `sharding.distributed.start`; they must see the same `run_dir`.

    Returns:
      `run_dir/model`, a directory that `from_pretrained` and transformers load, or `run_dir` where the model has no
      such form; None after SIGTERM, when the state is saved and there is nothing to export yet.

    Raises:
      ValueError: no run_dir, a vocabulary that does not fit, `run_dir` holds a run of another configuration, or another
        process trains in it.
      FloatingPointError: the loss or the gradient is not finite.
      OSError: the disk is full.
    """
    if not config.run_dir:
        raise ValueError("run_dir must be set, got nothing: add run_dir=DIR to the command")
    run_dir = Path(config.run_dir)
    earlier = stored_config(run_dir)
    config = resolve(config, None if earlier is None else earlier.model)
    ModelConfig.from_hf(config.model)  # a mistake in it shows before anything is written
    _check_vocabulary(config)
    with Stop() as stop, Lock(run_dir):
        first_does(partial(claim, run_dir, config))
        first_does(partial(write_tokenizer, run_dir / "tokenizer", config))
        tok = load_tokenizer(run_dir / "tokenizer")
        model, state = train(config, make_data(config, tok), _initial(config), stop)
        if int(state.step) < config.steps:
            return None
        if not config.ablation.qk_norm:
            warnings.warn("the model without QK-Norm is not exported: Hugging Face has no form for it", stacklevel=2)
            return run_dir
        directory = run_dir / "model"
        export_model(run_dir, directory, model, exported_params(state))
        return directory


def _initial(config: TrainConfig) -> Initial | None:
    return partial(load_initial, config) if config.init_from else None


def _check_vocabulary(config: TrainConfig) -> None:
    """Of a tokenizer that the run makes itself."""
    size = config.model.get("vocab_size", 0)
    if not (config.tokenizer.path or config.init_from) and config.tokenizer.vocab_size > size:
        raise ValueError(
            f"tokenizer.vocab_size must be at most model.vocab_size={size}, got {config.tokenizer.vocab_size}: lower it"
        )


def make_tokenizer(directory: Path, config: TrainConfig) -> Tokenizer:
    """The run's tokenizer: `tokenizer.path`'s, else that of `init_from`, else one trained on the data's own text; taken
    at the first start, read back at later ones."""
    write_tokenizer(directory, config)
    return load_tokenizer(directory)


def write_tokenizer(directory: Path, config: TrainConfig) -> None:
    """Puts the run's tokenizer into `directory` where there is none yet.

    Raises:
      FileNotFoundError: `tokenizer.path` is none.
      ValueError: a tokenizer with more tokens than the model.
    """
    if (directory / "tokenizer_config.json").exists():
        return
    origin = config.tokenizer.path or (source_of(config.init_from) if config.init_from else "")
    if not origin:
        _train_tokenizer(directory, config)
        return
    tok = load_tokenizer(origin)
    size = config.model.get("vocab_size", 0)
    if tok.vocab_size > size:
        raise ValueError(
            f"the tokenizer of {origin} must have at most model.vocab_size={size} tokens, got {tok.vocab_size}: take "
            "another, or a larger model"
        )
    with staged(directory) as stage:
        tok.save(stage)
        if (Path(origin) / GENERATION).is_file():  # its sampling defaults go with the model
            shutil.copyfile(Path(origin) / GENERATION, stage / GENERATION)


def _train_tokenizer(directory: Path, config: TrainConfig) -> None:
    texts = pocket_tokenizer.corpus(config.seed, config.tokenizer.corpus_size, config.data.tasks)
    bpe = pocket_tokenizer.train_tokenizer(texts, config.tokenizer.vocab_size)
    template = (pocket_path() / "chat_template.jinja").read_text(encoding="utf-8")
    with staged(directory) as stage:
        pocket_tokenizer.save_tokenizer(bpe, stage, template)


def main(argv: Sequence[str]) -> int:
    """The command; 0 when the run is done or was asked to stop, 2 with one line for a user's mistake, 1 where training
    broke down."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    try:
        directory = run(load_config(argv[0], argv[1:]))
        if directory is not None:
            print(directory)
    except (FloatingPointError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, FloatingPointError) or is_full_disk(error) else 2
    return 0
