"""What changes a row's logits before temperature: biases, penalties on tokens that are there already, and the ban on
end tokens before `min_tokens`."""

import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from qwen3_jax.infer.sampling_params import SamplingParams


@struct.dataclass
class History:
    """What a row has behind it.

    Attributes:
      counts: int32[B, V], how often each token was generated, fed tokens included.
      prompt: bool[B, V], the tokens of the prompt.
      generated: int32[B], tokens generated so far.
      ends: int32[B, E], tokens that end the row; -1 fills up.
    """

    __no_type_check__ = True  # while JAX lowers or maps a pytree, its fields are not arrays

    counts: Int[Array, "B V"]
    prompt: Bool[Array, "B V"]
    generated: Int[Array, " B"]
    ends: Int[Array, "B E"]


def penalize(logits: Float[Array, "B V"], history: History, params: SamplingParams) -> Float[Array, "B V"]:
    """The logits that temperature and the cuts are applied to, in the order of transformers and vLLM:

    1. `logit_bias` is added (OpenAI's API; transformers' SequenceBiasLogitsProcessor);
    2. tokens of the prompt or the answer: a positive logit is divided by `repetition_penalty`, a negative one
       multiplied (CTRL, 1909.05858; transformers' RepetitionPenaltyLogitsProcessor);
    3. `frequency_penalty` times its count in the answer is subtracted, and `presence_penalty` once (OpenAI's API);
    4. end tokens are -inf before `min_tokens` (transformers' MinNewTokensLengthLogitsProcessor).

    Runs only where some row asks for any of it. A row that does not is the same to the bit either way.
    """
    early = history.generated < params.min_tokens
    asked = (params.presence_penalty != 0) | (params.frequency_penalty != 0) | (params.repetition_penalty != 1)
    asked |= early | jnp.any(params.bias_tokens >= 0, axis=1)
    return lax.cond(jnp.any(asked), _penalized, lambda x, *_: x, logits, history, params, early)


def _penalized(x: Array, history: History, params: SamplingParams, early: Bool[Array, " B"]) -> Array:
    rows, vocab = jnp.arange(x.shape[0])[:, None], x.shape[1]

    def at(tokens: Array) -> Array:
        return jnp.where(tokens < 0, vocab, tokens)  # past the end: dropped

    x = x.at[rows, at(params.bias_tokens)].add(params.bias, mode="drop")
    present = history.counts > 0
    factor = params.repetition_penalty[:, None]
    x = jnp.where(present | history.prompt, jnp.where(x > 0, x / factor, x * factor), x)
    x = x - params.frequency_penalty[:, None] * history.counts.astype(jnp.float32)
    x = x - jnp.where(present, params.presence_penalty[:, None], 0.0)
    ban = jnp.where(early, -jnp.inf, jnp.inf)[:, None]
    return x.at[rows, at(history.ends)].min(jnp.broadcast_to(ban, history.ends.shape), mode="drop")
