"""Loss on held-out batches while training: the same ones every time, of the averaged parameters where there are any."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from qwen3_jax.model import Qwen3
from train.config import TrainConfig
from train.data import Batch, Data
from train.loss import cross_entropy
from train.step import TRACES


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
        domains = max(len(data.domain_names), 1)

        def losses(params: Any, batch: Batch) -> tuple[Float[Array, "domains"], Float[Array, "domains"]]:
            TRACES["evaluation"] += 1
            return domain_losses(model, params, batch, config.loss.chunk, domains)

        self._losses = jax.jit(losses)

    def due(self, step: int) -> bool:
        """Whether to evaluate after this step: every so many, and after the last."""
        return bool(self._every) and (step % self._every == 0 or step == self._steps)

    def __call__(self, state: Any) -> dict[str, Any]:
        """Of a `TrainState`."""
        ema = getattr(state, "ema", None)
        parts = [self._losses(state.params if ema is None else ema, batch) for batch in self._batches]
        totals, counts = zip(*parts, strict=True)
        return {"domain_loss": sum(totals[1:], totals[0]), "domain_tokens": sum(counts[1:], counts[0])}


def domain_losses(
    model: Qwen3, params: Any, batch: Batch, chunk: int, domains: int
) -> tuple[Float[Array, "domains"], Float[Array, "domains"]]:
    """Cross-entropy summed over the counted tokens of each domain, and their numbers."""
    out = model.apply(
        {"params": params},
        batch.tokens,
        attention_mask=batch.segment_ids > 0,
        segment_ids=batch.segment_ids,
        logits_to_keep=1,
    )
    head = params["embed_tokens" if model.config.tie_word_embeddings else "lm_head"]

    def one(domain: Array) -> tuple[Float[Array, ""], Float[Array, ""]]:
        mask = batch.loss_mask & (batch.domains == domain)
        return cross_entropy(out.hidden, head, batch.targets, mask, chunk, model.placement.rules)

    if domains == 1:
        total, count = one(jnp.zeros((), jnp.int32))
        return total[None], count[None]
    totals, counts = jax.lax.map(one, jnp.arange(domains, dtype=jnp.int32))
    return totals, counts
