"""AdamW with warm-up and cosine decay, weight decay on matrices only, gradients clipped by global norm."""

from typing import Any

import jax
import optax

from train.settings import OptimizerConfig


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear from zero over `warmup_steps`, then a cosine to `final_share` of the peak.

    Raises:
      ValueError: the warm-up does not end before the run does.
    """
    if not 0 <= config.warmup_steps < steps:
        raise ValueError(
            f"optimizer.warmup_steps must be below steps={steps}, got {config.warmup_steps}: shorten the warm-up"
        )
    return optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup_steps, steps, config.learning_rate * config.final_share
    )


def decay_mask(params: Any) -> Any:
    """True for the leaves that decay: everything but the norms' scales (which are [L, D] when stacked)."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not str(path[-1].key).endswith("norm"), params)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Its calls need `jax.numpy_dtype_promotion("standard")` where promotion is strict."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(schedule(config, steps), config.b1, config.b2, weight_decay=config.weight_decay, mask=decay_mask),
    )
