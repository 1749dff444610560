"""One training run from a configuration: tokenizer, data, loop, export."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import yaml

from qwen3_jax.checkpoint import save_pretrained
from qwen3_jax.config import ModelConfig
from qwen3_jax.generation_defaults import GenerationDefaults
from qwen3_jax.paths import pocket_path
from qwen3_jax.tokenizer import Tokenizer, load_tokenizer
from sharding.processes import first_does
from train.config import TrainConfig, load_config, to_dict
from train.data import make_data, sample_texts
from train.loop import train
from train.pocket import tokenizer as pocket_tokenizer

USAGE = "usage: python -m train CONFIG.yaml run_dir=DIR [key=value ...]"


def run(config: TrainConfig) -> Path:
    """Trains, resuming what `run_dir` holds, and exports the model in Hugging Face form.

    Many processes call this together, after `sharding.distributed.start`; they must see the same `run_dir`.

    Returns:
      `run_dir/model`, a directory that `from_pretrained` and transformers load.

    Raises:
      ValueError: no run_dir, a vocabulary that does not fit, or `run_dir` holds a run of another configuration.
      FloatingPointError: the loss is not finite.
      SystemExit: 143 after SIGTERM, when the state is saved.
    """
    if not config.run_dir:
        raise ValueError("run_dir must be set, got nothing: add run_dir=DIR to the command")
    if config.tokenizer.vocab_size > config.model.get("vocab_size", 0):
        raise ValueError(
            f"tokenizer.vocab_size must be at most model.vocab_size={config.model.get('vocab_size')}, got "
            f"{config.tokenizer.vocab_size}: lower it"
        )
    ModelConfig.from_hf(config.model)  # a mistake in it shows before anything is written
    run_dir = Path(config.run_dir)
    first_does(partial(_claim, run_dir, config))
    first_does(partial(write_tokenizer, run_dir / "tokenizer", config))
    tok = load_tokenizer(run_dir / "tokenizer")
    model, state = train(config, make_data(config, tok))
    if int(state.step) < config.steps:
        raise SystemExit(143)  # SIGTERM: the state is saved, there is nothing to export yet
    directory = run_dir / "model"
    save_pretrained(directory, model.clone(generation=generation_defaults(tok)), state.params, tok)
    return directory


def generation_defaults(tok: Tokenizer) -> GenerationDefaults:
    """What Qwen3's hybrid releases have in generation_config.json, with this tokenizer's ids."""
    end = tok.token_to_id("<|endoftext|>")
    assert tok.eos_token_id is not None
    assert end is not None
    return GenerationDefaults(
        eos_token_ids=(tok.eos_token_id, end),
        bos_token_id=end,
        pad_token_id=end,
        temperature=0.6,
        top_k=20,
        top_p=0.95,
    )


def make_tokenizer(directory: Path, config: TrainConfig) -> Tokenizer:
    """The run's tokenizer: trained on the tasks' text at the first start, read back at later ones."""
    write_tokenizer(directory, config)
    return load_tokenizer(directory)


def write_tokenizer(directory: Path, config: TrainConfig) -> None:
    """Trains the run's tokenizer where there is none yet."""
    if not (directory / "tokenizer_config.json").exists():
        if config.data.sources:
            texts = sample_texts(config.data, config.tokenizer.corpus_size, config.seed)
        else:
            texts = pocket_tokenizer.corpus(config.seed, config.tokenizer.corpus_size, config.data.tasks)
        bpe = pocket_tokenizer.train_tokenizer(texts, config.tokenizer.vocab_size)
        template = (pocket_path() / "chat_template.jinja").read_text(encoding="utf-8")
        pocket_tokenizer.save_tokenizer(bpe, directory, template)


def main(argv: Sequence[str]) -> int:
    """The command; 0 when the run is done, 2 with one line for a user's mistake, 1 where training broke down."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    try:
        print(run(load_config(argv[0], argv[1:])))
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _claim(run_dir: Path, config: TrainConfig) -> None:
    """Writes config.yaml, or requires the one there to be the same but for what may change between starts."""
    path = run_dir / "config.yaml"
    ours = to_dict(config) | {"run_dir": ""}
    if path.exists():
        theirs = yaml.safe_load(path.read_text(encoding="utf-8"))
        free = {"run_dir", "report", "checkpoint_every", "keep_checkpoints", "mesh"}
        differ = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        differ = [key for key in differ if key not in free]
        if differ:
            raise ValueError(
                f"{run_dir} must be empty or hold this run, got one that differs in {', '.join(differ)}: "
                "choose another run_dir"
            )
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(ours, sort_keys=False, allow_unicode=True), encoding="utf-8")
