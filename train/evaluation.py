"""Loss on held-out batches while training: the same ones every time, of the averaged parameters where there are any."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from qwen3_jax.network.model import Qwen3
from qwen3_jax.train.config import TrainConfig
from qwen3_jax.train.data import Batch, Data
from qwen3_jax.train.objective import domain_losses
from qwen3_jax.train.state import TrainState
from qwen3_jax.train.step import TRACES


class Evaluation:
    """`evaluation(state)` gives sums of losses and numbers of tokens by domain, still being computed."""

    def __init__(
        self, config: TrainConfig, model: Qwen3, data: Data, here: Sequence[int], layout: NamedSharding | None
    ) -> None:
        self._every, self._steps = config.evaluation.every, config.steps
        self._batches: list[Batch] = []
        if not self._every:
            return
        self._batches = [share.place(layout) for share in data.held_out(here)]
        if not self._batches:
            raise ValueError(
                "evaluation must have a held-out example that fills a batch's row, got none: give more by "
                "evaluation.sources or data.held_out, or set evaluation.every=0"
            )
        domains = max(len(data.domain_names), 1)

        def losses(params: Any, batch: Batch) -> tuple[Float[Array, "domains"], Float[Array, "domains"]]:
            TRACES["evaluation"] += 1
            return domain_losses(model, params, batch, config.loss.chunk, domains)

        self._losses = jax.jit(losses)

    def due(self, step: int) -> bool:
        """Whether to evaluate after this step: every so many, and after the last."""
        return bool(self._every) and (step % self._every == 0 or step == self._steps)

    def __call__(self, state: TrainState) -> dict[str, Any]:
        """Of the averaged parameters where there are any."""
        params = state.averaged_params
        parts = [self._losses(params, batch) for batch in self._batches]
        totals, counts = zip(*parts, strict=True)
        return {"domain_loss": sum(totals[1:], totals[0]), "domain_tokens": sum(counts[1:], counts[0])}
