"""The run's tokenizer: one that exists, or a BPE made from the text that the run trains on."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from qwen3_jax.checkpoints.staging import staged
from qwen3_jax.paths import pocket_path
from qwen3_jax.text.tokenizer import Tokenizer, load_tokenizer
from qwen3_jax.train.config import TrainConfig
from qwen3_jax.train.data import sample_texts
from qwen3_jax.train.initial import source_of
from qwen3_jax.train.pocket import tokenizer as pocket_tokenizer

GENERATION = "generation_config.json"


def make_tokenizer(directory: Path, config: TrainConfig) -> Tokenizer:
    """The run's tokenizer: `tokenizer.path`'s, else that of `init_from`, else one trained on the data's own text; taken
    at the first start, read back at later ones."""
    write_tokenizer(directory, config)
    return load_tokenizer(directory)


def write_tokenizer(directory: Path, config: TrainConfig) -> None:
    """Puts the run's tokenizer into `directory` where there is none yet.

    Raises:
      FileNotFoundError: `tokenizer.path` is none.
      ValueError: a tokenizer with more tokens than the model, or sources without text to make one from.
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
    settings = config.tokenizer
    texts: Iterator[str]
    if config.data.sources:
        texts = sample_texts(config.data, settings.corpus_size, config.seed)
    else:
        texts = pocket_tokenizer.corpus(config.seed, settings.corpus_size, config.data.tasks)
    bpe = pocket_tokenizer.train_tokenizer(texts, settings.vocab_size)
    template = (pocket_path() / "chat_template.jinja").read_text(encoding="utf-8")
    with staged(directory) as stage:
        pocket_tokenizer.save_tokenizer(bpe, stage, template)
