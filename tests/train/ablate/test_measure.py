"""What is measured of a network, against loops over its logits in numpy."""

from typing import Any

import jax
import numpy as np
import pytest

from qwen3_jax.config import ModelConfig
from qwen3_jax.network.model import Qwen3
from qwen3_jax.train.ablate import mutual_information, total_variation
from qwen3_jax.train.ablate.measure import bucket_names, measure
from qwen3_jax.train.data import Batch
from tests.tiny import dense_config, moe_config, random_params

LENGTH, DOMAINS = 80, ("maths", "code", "absent")


def batches(count: int = 2) -> list[Batch]:
    """Rows of a document of 50 tokens, one of 20 and 10 of padding; loss on three of four tokens."""
    random = np.random.default_rng(3)
    segments = np.repeat([[1] * 50 + [2] * 20 + [0] * 10], 2, axis=0).astype(np.int32)
    made = []
    for _ in range(count):
        tokens = random.integers(0, 512, (2, LENGTH + 1)).astype(np.int32)
        domains = np.where(segments == 1, random.integers(0, 2, (2, 1)), 1).astype(np.int32)
        made.append(
            Batch(
                tokens=tokens[:, :-1],
                targets=tokens[:, 1:],
                loss_mask=(random.random((2, LENGTH)) < 0.75) & (segments > 0),
                segment_ids=segments,
                domains=domains,
            )
        )
    return made


def reference(config: ModelConfig, model: Qwen3, params: Any) -> dict[str, Any]:
    losses: dict[Any, list[float]] = {}
    counts = np.zeros((config.num_hidden_layers, len(DOMAINS), config.num_experts or 1))
    for batch in batches():
        real = batch.segment_ids > 0
        out = jax.jit(model.apply)({"params": params}, batch.tokens, attention_mask=real, segment_ids=batch.segment_ids)
        logits = np.asarray(out.logits, np.float64)
        routers = np.concatenate([np.asarray(r) for r in out.router_logits]) if out.router_logits else None
        for row, column in zip(*np.nonzero(real), strict=True):
            domain, position = int(batch.domains[row, column]), column if column < 50 else column - 50
            if batch.loss_mask[row, column]:
                scores = logits[row, column]
                loss = float(np.log(np.exp(scores).sum()) - scores[batch.targets[row, column]])
                bucket = "0-31" if position < 32 else "32-63"
                for key in ("all", domain, bucket):
                    losses.setdefault(key, []).append(loss)
            if routers is not None:
                for layer in range(len(counts)):
                    for expert in np.argsort(routers[layer, row, column])[-config.num_experts_per_tok :]:
                        counts[layer, domain, expert] += 1
    return {"losses": {key: float(np.mean(values)) for key, values in losses.items()}, "counts": counts}


@pytest.mark.parametrize("config", [dense_config(tie_word_embeddings=False), moe_config()], ids=["dense", "moe"])
def test_measures_are_those_of_loops(config: ModelConfig) -> None:
    model, params = Qwen3(config), random_params(config)
    found = measure(model, params, batches(), DOMAINS)
    expected = reference(config, model, params)
    losses = expected["losses"]
    assert found["held_out_loss"] == pytest.approx(losses["all"], rel=1e-5)
    assert found["domain_loss"] == pytest.approx({"maths": losses[0], "code": losses[1]}, rel=1e-5)
    assert found["position_loss"] == pytest.approx({name: losses[name] for name in ("0-31", "32-63")}, rel=1e-5)
    if config.num_experts:
        counts = expected["counts"]
        assert counts[:, :2].any(axis=(0, 2)).all()
        assert found["expert_information"] == pytest.approx(mutual_information(counts))
        assert found["expert_variation"] == pytest.approx(total_variation(counts))
        load = counts.sum(1)
        assert found["expert_load_max"] == pytest.approx((load.max(1) / load.mean(1)).max())
    else:
        assert set(found) == {"held_out_loss", "domain_loss", "position_loss"}


def test_one_domain_has_no_specialisation() -> None:
    config = moe_config()
    found = measure(Qwen3(config), random_params(config), [b.replace(domains=b.domains * 0) for b in batches(1)], ["a"])
    assert "expert_load_max" in found
    assert "expert_information" not in found


def test_nothing_to_measure_on_is_refused() -> None:
    config = dense_config()
    with pytest.raises(ValueError, match="held-out data must have tokens"):
        measure(Qwen3(config), random_params(config), [], DOMAINS)


def test_buckets_double() -> None:
    assert bucket_names(32) == ["0-31"]
    assert bucket_names(129) == ["0-31", "32-63", "64-127", "128-255"]
