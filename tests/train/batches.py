"""What tests do with a batch: take its loss, put it on a mesh, train on it."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from qwen3_jax.network.model import Qwen3
from qwen3_jax.sharding import Rules
from qwen3_jax.train.data import Batch
from qwen3_jax.train.objectives.objective import objective
from qwen3_jax.train.settings import LossConfig
from qwen3_jax.train.streams import batch_sharding


def batch_loss(model: Qwen3, params: Any, batch: Batch, chunk: int) -> tuple[Any, tuple[Any, Any]]:
    """Mean cross-entropy over the batch's counted tokens, nothing added; their number and the experts' load."""
    value, report = objective(model, params, batch, LossConfig(balance="none", chunk=chunk))
    return value, (report.tokens, report.expert_load)


def put_batch(batch: Batch, mesh: Mesh | None, rules: Rules) -> Batch:
    """A batch on its devices."""
    layout = batch_sharding(mesh, rules)
    return batch if layout is None else jax.tree.map(lambda array: jax.device_put(array, layout), batch)


def three_steps(step: Callable[[Any, Batch], Any], state: Any, batch: Batch) -> tuple[Any, list[float], Any]:
    """The state after them, the loss of each, and AdamW's moments after the first."""
    losses, moments = [], None
    for _ in range(3):
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss))
        moments = moments or jax.tree.map(np.asarray, (state.opt_state[1][0].mu, state.opt_state[1][0].nu))
    return state, losses, moments
