"""Settings of a run that change nothing in it, which a user should hear of."""

import warnings
from collections.abc import Iterator

from qwen3_jax.train.config import TrainConfig
from qwen3_jax.train.settings import DataConfig, TokenizerConfig


def warn_without_effect(config: TrainConfig) -> None:
    """For the command; who calls `run` with a configuration of their own making knows."""
    for line in without_effect(config):
        warnings.warn(line, stacklevel=3)


def without_effect(config: TrainConfig) -> Iterator[str]:
    """One line for each setting that was changed and has no effect: what it is, why, and what to do."""
    data, fresh = config.data, DataConfig()
    if config.loss.balance == "micro_batch" and config.micro_batches == 1:
        yield "loss.balance=micro_batch is loss.balance=global with micro_batches=1: raise micro_batches, or remove it"
    if config.evaluation.sources and not config.evaluation.every:
        yield "evaluation.sources are not read with evaluation.every=0: set evaluation.every, or remove them"
    if data.held_out and config.evaluation.sources:
        yield (
            f"data.held_out={data.held_out} takes examples from training that nothing evaluates, as there are "
            "evaluation.sources: remove one of the two"
        )
    if data.held_out and not config.evaluation.every:
        yield (
            f"data.held_out={data.held_out} takes examples from training that nothing evaluates with "
            "evaluation.every=0: set evaluation.every, or remove it"
        )
    for name in ("tasks", "curriculum_examples"):
        if data.sources and getattr(data, name) != getattr(fresh, name):
            yield f"data.{name} is of the pocket model's tasks and has no effect with data.sources: remove it"
    taken = "tokenizer.path" if config.tokenizer.path else "init_from" if config.init_from else ""
    if taken and config.tokenizer.vocab_size != TokenizerConfig().vocab_size:
        yield f"tokenizer.vocab_size has no effect with {taken}, whose tokenizer is taken: remove it"
