"""Log-probabilities of given text, without a cache and without its logits ever being whole."""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from qwen3_jax.infer.config import GenerationConfig
from qwen3_jax.infer.decode import TRACES
from qwen3_jax.infer.rows import prepare
from qwen3_jax.kernels.cross_entropy import token_losses
from qwen3_jax.network.buckets import prompt_bucket, round_up
from qwen3_jax.network.model import Qwen3
from qwen3_jax.parameters.specs import Params
from qwen3_jax.sharding import axes_of, mesh_of, mesh_size, replicate, under_mesh
from qwen3_jax.text.tokenizer import Tokenizer

_TOKENS = 8192  # of a batch, padding included
_CHUNK = 128  # tokens of a device whose logits exist at once


def score(
    model: Qwen3,
    params: Params,
    tok: Tokenizer,
    prompts: Sequence[Any],
    completions: Sequence[str],
    tools: Sequence[dict[str, Any]] | None = None,
    enable_thinking: bool | None = None,
) -> list[list[float]]:
    """How probable each completion is after its prompt, token by token, at temperature 1.

    Args:
      prompts: as `infer.generate` takes its inputs: raw text, or messages that go through the chat template.
      completions: text as the model would write it, one for each prompt. An end token or a think block counts where it
        is written: nothing is added.
      tools, enable_thinking: for the template.

    Returns:
      for each completion one natural log-probability a token of `tok.encode(completion)`; their sum is that of the
      whole.

    Raises:
      ValueError: a prompt that `infer.generate` refuses, or prompt and completion longer than the context.
    """
    if isinstance(completions, str) or len(completions) != len(prompts):
        got = "one text" if isinstance(completions, str) else f"{len(completions)} for {len(prompts)} prompts"
        raise ValueError(f"completions must be one text for each prompt, got {got}: give as many")
    ends = [tok.encode(text) for text in completions]
    config = GenerationConfig(enable_thinking=enable_thinking)
    configs = [dataclasses.replace(config, max_new_tokens=max(len(end), 1)) for end in ends]
    rows = prepare(model, tok, prompts, configs, tools)
    texts = [(row.tokens, end) for row, end in zip(rows, ends, strict=True)]
    mesh = mesh_of(params)
    scored = dict(under_mesh(mesh, _batches(model, params, texts, mesh)))
    return [scored[index] for index in range(len(texts))]


def _batches(
    model: Qwen3, params: Params, texts: list[tuple[list[int], list[int]]], mesh: Mesh | None
) -> Iterator[tuple[int, list[float]]]:
    """Texts of like length together; each bucket of lengths has one batch size, so that it is compiled once."""
    lengths = [prompt_bucket(len(prompt) + len(end)) for prompt, end in texts]
    multiple = mesh_size(axes_of("batch", model.placement.rules))
    for bucket in sorted(set(lengths)):
        chosen = [index for index, length in enumerate(lengths) if length == bucket]
        size = round_up(min(max(_TOKENS // bucket, 1), 16), multiple)
        for begin in range(0, len(chosen), size):
            part = chosen[begin : begin + size]
            tokens, real = np.zeros((size, bucket + 1), np.int32), np.zeros((size, bucket), bool)
            for row, index in enumerate(part):
                whole = [*texts[index][0], *texts[index][1]]
                tokens[row, : len(whole)], real[row, : len(whole)] = whole, True
            fed = replicate((tokens[:, :-1], real, tokens[:, 1:]), mesh)
            found = np.asarray(_log_probs(model, params, *fed))
            for row, index in enumerate(part):
                prompt, end = texts[index]
                first = len(prompt) - 1  # a token's log-probability stands at the one before it
                yield index, found[row, first : first + len(end)].tolist()


@partial(jax.jit, static_argnames=("model",))
def _log_probs(
    model: Qwen3, params: Params, tokens: Int[Array, "B T"], real: Bool[Array, "B T"], targets: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    TRACES["score"] += 1
    hidden = model.apply({"params": params}, tokens, attention_mask=real, logits_to_keep=1).hidden
    head = params["embed_tokens" if model.config.tie_word_embeddings else "lm_head"]
    weights = jnp.zeros(tokens.shape, jnp.float32)  # no gradient is wanted
    losses = token_losses(hidden, head, targets, weights, _CHUNK, model.placement.rules).losses
    return model.placement.constrain(-losses, None, None)
