"""AdamW and Muon through optax: schedules, weight decay on matrices only, gradients clipped by global norm."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from qwen3_jax.train.settings import OptimizerConfig


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by steps done: linear from zero over `warmup_steps`, then by `config.schedule`:

      cosine    to `final_share` of the peak when `steps` are done.
      linear    the same in a straight line.
      wsd       the peak until the last `decay_share` of the steps, then a straight line to `final_share` of it
                (warm-up, stable, decay: MiniCPM, 2404.06395).
      constant  the peak.

    The n-th step of a run (from 1) takes the rate at n - 1, as with transformers' schedules: with a warm-up the first
    step's is zero, and the last step's is one step short of `final_share`.

    Raises:
      ValueError: the warm-up does not end before the run (with wsd: before the decay begins).
    """
    stable_until = steps - round(config.decay_share * steps) if config.schedule == "wsd" else steps
    if not 0 <= config.warmup_steps < stable_until:
        what = f"steps={steps}" if config.schedule != "wsd" else f"step {stable_until}, where the decay begins"
        raise ValueError(f"optimizer.warmup_steps must be below {what}, got {config.warmup_steps}: shorten the warm-up")
    peak, final, warm = config.learning_rate, config.learning_rate * config.final_share, config.warmup_steps
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, peak, warm, steps, final)
    parts: list[optax.Schedule] = [optax.linear_schedule(0.0, peak, warm)]
    if config.schedule == "linear":
        return optax.join_schedules([*parts, optax.linear_schedule(peak, final, steps - warm)], [warm])
    parts.append(optax.constant_schedule(peak))
    if config.schedule == "constant":
        return optax.join_schedules(parts, [warm])
    parts.append(optax.linear_schedule(peak, final, steps - stable_until))
    return optax.join_schedules(parts, [warm, stable_until])


def decay_mask(params: Any) -> Any:
    """True for the leaves that decay: everything but the norms' scales (which are [L, D] when stacked)."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not _is_norm(path), params)


def muon_labels(params: Any) -> Any:
    """ "muon" for the matrices inside layers, "adamw" for embeddings, head and norms."""

    def label(path: Any, _: Any) -> str:
        return "muon" if len(path) > 1 and not _is_norm(path) else "adamw"

    return jax.tree_util.tree_map_with_path(label, params)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformationExtraArgs:
    """Its `update` takes the step as an extra argument, `update(grads, state, params, step=step)`: the learning rate
    goes by it and not by a counter of the optimizer's, so that a step that is skipped counts too.

    Its calls need `jax.numpy_dtype_promotion("standard")` where promotion is strict.
    """
    adamw = optax.chain(
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(config.weight_decay, decay_mask),
    )
    direction = adamw
    if config.name == "muon":
        muon = optax.chain(
            _momentum_orthogonalised(config.muon_momentum), optax.add_decayed_weights(config.weight_decay)
        )
        beside = optax.chain(adamw, optax.scale(config.muon_adam_rate))
        direction = optax.partition({"muon": muon, "adamw": beside}, muon_labels)
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    return optax.chain(*clip, direction, _scale_by_rate(schedule(config, steps)))


def _is_norm(path: Any) -> bool:
    return str(path[-1].key).endswith("norm")


def _scale_by_rate(rate: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    def update(updates: Any, state: Any, _: Any = None, *, step: Any, **__: Any) -> tuple[Any, Any]:
        factor = -rate(step)
        return jax.tree.map(lambda update: jnp.asarray(factor, update.dtype) * update, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _momentum_orthogonalised(beta: float) -> optax.GradientTransformation:
    """Muon's direction (Jordan et al., 2024): each matrix's Nesterov momentum, made orthogonal by five Newton-Schulz
    steps, times sqrt(max(1, out / in)).

    `optax.contrib.scale_by_muon` flattens leading axes of a leaf into one, for which a mesh would have to gather
    experts that it keeps apart; so it is mapped over them, [L, out, in] and [L, E, out, in], matrix by matrix.
    """
    muon = optax.contrib.scale_by_muon(
        beta=beta,
        # Hugging Face's orientation: the last axis is summed over.
        weight_dimension_numbers=optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=0),
    )

    def one(gradient: Any, momentum: Any, state: Any) -> tuple[Any, Any]:
        direction, after = muon.update(gradient, state._replace(mu=momentum))
        out, inside = gradient.shape
        return direction * math.sqrt(max(1.0, out / inside)), after.mu

    def update(updates: Any, state: Any, _: Any = None) -> tuple[Any, Any]:
        def leaf(gradient: Any, momentum: Any) -> tuple[Any, Any]:
            mapped = one
            for _ in range(gradient.ndim - 2):
                mapped = jax.vmap(mapped, in_axes=(0, 0, None))
            return mapped(gradient, momentum, state)

        gradients, tree = jax.tree.flatten(updates)
        pairs = [leaf(*both) for both in zip(gradients, jax.tree.leaves(state.mu), strict=True)]
        directions, momenta = (jax.tree.unflatten(tree, leaves) for leaves in zip(*pairs, strict=True))
        return directions, state._replace(count=optax.safe_increment(state.count), mu=momenta)

    return optax.GradientTransformation(muon.init, update)
