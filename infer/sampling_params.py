"""How each row is sampled: arrays with one entry a row, so that one batch mixes settings and nothing recompiles."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

GREEDY_BELOW = 1e-6  # temperatures below this one are greedy: a division by them can overflow
MAX_BIASES = 512  # entries of logit_bias that a row has room for
NOWHERE = -1  # fills up lists of tokens; no token has this id

# A setting that is left out changes nothing.
_NEUTRAL: dict[str, tuple[Any, type]] = {
    "temperature": (1.0, np.float32),
    "top_k": (0, np.int32),
    "top_p": (1.0, np.float32),
    "min_p": (0.0, np.float32),
    "presence_penalty": (0.0, np.float32),
    "frequency_penalty": (0.0, np.float32),
    "repetition_penalty": (1.0, np.float32),
    "min_tokens": (0, np.int32),
    "log_probs": (False, np.bool_),
}


@struct.dataclass
class SamplingParams:
    """How each row is sampled. Values are checked where a user gives them (`infer.GenerationConfig`), not here.

    Attributes:
      temperature: float32[B], 0 is greedy.
      top_k: int32[B], 0 is off, as is anything from the size of the vocabulary on.
      top_p: float32[B], 1 is off.
      min_p: float32[B], 0 is off.
      presence_penalty, frequency_penalty: float32[B], 0 is off.
      repetition_penalty: float32[B], 1 is off.
      min_tokens: int32[B], the row does not end before it has so many.
      log_probs: bool[B], whether the log-probabilities at temperature 1 are wanted.
      bias_tokens: int32[B, MAX_BIASES], -1 where there is none.
      bias: float32[B, MAX_BIASES], what is added to the logits of these tokens.
    """

    __no_type_check__ = True  # while JAX lowers or maps a pytree, its fields are not arrays

    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array
    presence_penalty: Array
    frequency_penalty: Array
    repetition_penalty: Array
    min_tokens: Array
    log_probs: Array
    bias_tokens: Array
    bias: Array

    @property
    def greedy(self) -> Array:
        """bool[B]: rows that take their largest logit."""
        return self.temperature < GREEDY_BELOW


def sampling_params(rows: Sequence[Mapping[str, Any]]) -> SamplingParams:
    """The settings of each row, by their names in `infer.GenerationConfig`; what a row leaves out is off."""
    bias_tokens = np.full((len(rows), MAX_BIASES), NOWHERE, np.int32)
    bias = np.zeros((len(rows), MAX_BIASES), np.float32)
    for index, row in enumerate(rows):
        biases = row.get("logit_bias") or {}
        bias_tokens[index, : len(biases)] = list(biases)
        bias[index, : len(biases)] = list(biases.values())
    fields = {
        name: jnp.asarray(np.array([row.get(name, off) for row in rows], dtype))
        for name, (off, dtype) in _NEUTRAL.items()
    }
    return SamplingParams(bias_tokens=jnp.asarray(bias_tokens), bias=jnp.asarray(bias), **fields)
