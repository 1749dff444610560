"""One training step: state -> state, jitted once, the old state donated."""

import collections
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from qwen3_jax.model import Qwen3
from train.config import TrainConfig
from train.data import Batch
from train.loss import cross_entropy
from train.optimizer import make_optimizer, schedule

TRACES: collections.Counter[str] = collections.Counter()  # how often each jitted function was traced


@flax.struct.dataclass
class TrainState:
    """What a checkpoint holds.

    Attributes:
      step: steps done.
      params: the model's parameters.
      opt_state: the optimizer's.
    """

    step: Any  # int32[]; not Int[Array, ""]: orbax restores into a tree of ShapeDtypeStructs
    params: Any
    opt_state: Any


@flax.struct.dataclass
class Metrics:
    """Of one step."""

    loss: Float[Array, ""]
    tokens: Float[Array, ""]  # tokens the loss was taken on
    grad_norm: Float[Array, ""]
    learning_rate: Float[Array, ""]


def batch_loss(model: Qwen3, params: Any, batch: Batch, chunk: int) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean cross-entropy over the batch's counted tokens, and their number."""
    out = model.apply(
        {"params": params},
        batch.tokens,
        attention_mask=batch.segment_ids > 0,
        segment_ids=batch.segment_ids,
        logits_to_keep=1,  # the loss takes its own logits, chunk by chunk; these are dropped by the compiler
    )
    head = params["embed_tokens" if model.config.tie_word_embeddings else "lm_head"]
    total, count = cross_entropy(out.hidden, head, batch.targets, batch.loss_mask, chunk)
    return total / jnp.maximum(count, 1.0), count


def init_state(model: Qwen3, config: TrainConfig) -> TrainState:
    """Fresh parameters and optimizer, from the seed."""
    params = model.init(jax.random.key(config.seed), jnp.zeros((1, 8), jnp.int32))["params"]
    with jax.numpy_dtype_promotion("standard"):
        opt_state = make_optimizer(config.optimizer, config.steps).init(params)
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=opt_state)


def make_step(model: Qwen3, config: TrainConfig) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The jitted step."""
    optimizer = make_optimizer(config.optimizer, config.steps)
    rate = schedule(config.optimizer, config.steps)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        TRACES["train_step"] += 1
        (loss, tokens), grads = jax.value_and_grad(
            lambda params: batch_loss(model, params, batch, config.loss_chunk), has_aux=True
        )(state.params)
        with jax.numpy_dtype_promotion("standard"):  # optax relies on it
            grad_norm = optax.tree.norm(grads)
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            learning_rate = jnp.asarray(rate(state.step), jnp.float32)
        metrics = Metrics(loss=loss, tokens=tokens, grad_norm=grad_norm, learning_rate=learning_rate)
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return jax.jit(train_step, donate_argnums=0)
