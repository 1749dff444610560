"""Fifty steps against transformers and torch's AdamW, from the same weights on the same batches, float32.

Both have weight decay on everything but norms, gradients clipped by their global norm at a value that cuts most of
them, and warm-up with a cosine; the mixture of experts has Hugging Face's own load-balancing loss.
"""

import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax import save_pretrained
from qwen3_jax.config import ModelConfig
from qwen3_jax.train.config import TrainConfig
from qwen3_jax.train.data import Batch
from qwen3_jax.train.parsing import parse
from qwen3_jax.train.state import TrainState, init_state
from qwen3_jax.train.step import TRACES, make_model, make_step
from tests.tiny import dense_config, moe_config, random_params

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

STEPS, ROWS, LENGTH, WARMUP, CLIP, DECAY, RATE, FINAL = 50, 4, 16, 5, 0.5, 0.1, 2e-3, 0.1


def batches(vocab_size: int) -> list[np.ndarray]:
    """Tokens with something to learn: each follows from the one before, with noise."""
    rng = np.random.default_rng(3)
    made = []
    for _ in range(STEPS):
        tokens = [rng.integers(0, vocab_size, ROWS)]
        for _ in range(LENGTH - 1):
            follows = (3 * tokens[-1] + 1) % vocab_size
            tokens.append(np.where(rng.random(ROWS) < 0.9, follows, rng.integers(0, vocab_size, ROWS)))
        made.append(np.stack(tokens, axis=1))
    return made


def theirs(directory: Path, data: list[np.ndarray], sparse: bool) -> list[float]:
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).train()
    spared = [p for name, p in model.named_parameters() if name.endswith("norm.weight")]
    decayed = [p for name, p in model.named_parameters() if not name.endswith("norm.weight")]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), eps=1e-8)

    def share(step: int) -> float:
        if step < WARMUP:
            return step / WARMUP
        return FINAL + (1 - FINAL) * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    losses = []
    for tokens in data:
        ids = torch.tensor(tokens)
        out = model(ids, labels=ids, **({"output_router_logits": True} if sparse else {}))
        losses.append(out.loss.item())
        optimizer.zero_grad()
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        scheduler.step()
    return losses


def ours(architecture: ModelConfig, params: Any, data: list[np.ndarray], sparse: bool) -> list[float]:
    settings: dict[str, Any] = {
        "model": architecture.to_hf(),
        "steps": STEPS,
        "data": {"rows": ROWS, "length": LENGTH},
        "optimizer": {
            "learning_rate": RATE,
            "warmup_steps": WARMUP,
            "final_share": FINAL,
            "weight_decay": DECAY,
            "clip_norm": CLIP,
        },
        "loss": {"balance": "huggingface"} if sparse else {},
    }
    config = parse(TrainConfig, settings)
    model = make_model(config, None)
    fresh, step = init_state(model, config), make_step(model, config)
    state = TrainState(step=fresh.step, params=params, opt_state=fresh.opt_state)
    losses, before = [], TRACES["train_step"]
    for tokens in data:
        batch = Batch(
            tokens=tokens.astype(np.int32),
            targets=np.roll(tokens, -1, axis=1).astype(np.int32),
            loss_mask=np.broadcast_to(np.arange(LENGTH) < LENGTH - 1, tokens.shape),
            segment_ids=np.ones(tokens.shape, np.int32),
            domains=np.zeros(tokens.shape, np.int32),
        )
        state, metrics = step(state, batch)
        assert (metrics.balance_loss is not None) == sparse
        losses.append(float(metrics.loss) + (float(metrics.balance_loss) if sparse else 0.0))
    assert TRACES["train_step"] - before == 1
    return losses


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "moe"])
def test_fifty_steps_are_those_of_transformers_and_torch(sparse: bool, tmp_path: Path) -> None:
    make = moe_config if sparse else dense_config
    architecture = make(vocab_size=64, **({"router_aux_loss_coef": 0.02} if sparse else {}))
    params, data = random_params(architecture, "unrolled"), batches(64)
    model = make_model(parse(TrainConfig, {"model": architecture.to_hf()}), None)
    save_pretrained(tmp_path, model, params)
    got = ours(architecture, jax_copy(params), data, sparse)
    expected = theirs(tmp_path, data, sparse)
    assert expected[-1] < 0.8 * expected[0]  # it learns
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def jax_copy(params: Any) -> Any:
    """Arrays of their own: the step donates what it is given."""
    if isinstance(params, dict):
        return {name: jax_copy(value) for name, value in params.items()}
    return jnp.array(params)
