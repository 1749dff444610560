"""Arithmetic of a model, counted from its configuration: a multiplication and an addition are two operations (FLOPs).

Counted are matrix products and attention, as is the custom: no norms, no softmax, no lookup of the embedding. A
program's own cost analysis can not stand in for this: it counts the body of the layer scan once and knows nothing of
kernels.
"""

import dataclasses
import math
from typing import Literal

from qwen3_jax.config import ModelConfig
from qwen3_jax.parameters.specs import layer_specs

Mode = Literal["train", "prefill", "decode"]


@dataclasses.dataclass(frozen=True)
class Flops:
    """Of one step over the global batch.

    Attributes:
      model: what the mathematics needs: causal attention, no recomputation. The numerator of MFU.
      hardware: what the program does: recomputation counted.
    """

    model: float
    hardware: float


def layer_matrix_parameters(config: ModelConfig) -> int:
    """Weights that one token is multiplied with in all layers: of the experts those it is sent to, and the router."""
    total = 0
    for sparse, length in config.segments:
        for spec in layer_specs(config, sparse).values():
            if len(spec.shape) == 1:
                continue  # a norm's scale
            size = math.prod(spec.shape)
            if spec.axes[0] == "expert":
                size = size // config.num_experts * config.num_experts_per_tok
            total += size * length
    return total


def head_parameters(config: ModelConfig) -> int:
    """Of the output matrix, tied or not."""
    return config.vocab_size * config.hidden_size


def attention_pairs(tokens: int, context: int = 0) -> float:
    """Pairs of a query and a key that it sees, for `tokens` queries after `context` earlier tokens.

    In: 4 tokens     Out: 4 + 3 + 2 + 1 = 10
    """
    return tokens * context + tokens * (tokens + 1) / 2


def attention_flops(config: ModelConfig, pairs: float) -> float:
    """Scores and weighted values of all layers, for so many pairs a head."""
    return 4.0 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * pairs


def forward_flops(config: ModelConfig, tokens: int, context: int = 0, logits: int | None = None) -> float:
    """One row's forward pass over `tokens` new tokens after `context` earlier ones; `logits` of them (by default all)
    meet the head."""
    logits = tokens if logits is None else logits
    products = 2.0 * layer_matrix_parameters(config) * tokens + 2.0 * head_parameters(config) * logits
    return products + attention_flops(config, attention_pairs(tokens, context))


def step_flops(config: ModelConfig, mode: Mode, sequence_length: int, batch_size: int) -> Flops:
    """Of one step over the whole batch.

      train     forward and backward (twice the forward) of every token; the hardware runs every layer's forward once
                more, and the head's (the loss is taken in chunks that are rematerialised).
      prefill   one forward pass of `sequence_length` tokens a row, logits of the last one.
      decode    one new token a row, which sees `sequence_length` tokens with itself.

    The hardware's attention is counted causally too: the fused kernels skip blocks above the diagonal, and their
    backward pass computes the scores once more (a fifth product beside the four).
    """
    if mode != "train":
        tokens, context = (1, sequence_length - 1) if mode == "decode" else (sequence_length, 0)
        flops = batch_size * forward_flops(config, tokens, context, logits=1)
        return Flops(flops, flops)
    forward = batch_size * forward_flops(config, sequence_length)
    scores = batch_size * attention_flops(config, attention_pairs(sequence_length)) / 2
    return Flops(3 * forward, 4 * forward + scores)


def experts_met(config: ModelConfig, tokens: int) -> float:
    """Experts of a layer that at least one of `tokens` tokens goes to, on average, if all are equally likely.

    In: 128 experts, 8 a token, 1 token     Out: 8
    """
    return config.num_experts * (1 - (1 - config.num_experts_per_tok / config.num_experts) ** tokens)
