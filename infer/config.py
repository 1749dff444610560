"""How to answer: the settings of one generation, checked when they are made."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from qwen3_jax.generation_defaults import GenerationDefaults
from qwen3_jax.infer.sampling_params import MAX_BIASES
from qwen3_jax.infer.stop_thinking_text import NAMED_STOP_TEXTS

# Longest answer when nobody says: the recommended output length of the model cards. A budget comes on top of it.
DEFAULT_MAX_NEW_TOKENS = 32768

# Recommended by the model cards for each mode, for checkpoints without a generation_config.json.
_RECOMMENDED = {
    True: {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0, "repetition_penalty": 1.0},
    False: {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0, "repetition_penalty": 1.0},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Settings of one generation; a field left None takes the checkpoint's value, else the mode's recommended one.

    Raises:
      ValueError: a value no sampler can use (one line: what must hold, what came, what to do).
    """

    max_new_tokens: int | None = None  # None: as many as the context holds, at most 32,768 plus the budget
    min_tokens: int = 0  # no end token and no stop string before so many tokens; thinking and fed ones count
    temperature: float | int | None = None  # 0 is greedy
    top_p: float | int | None = None  # in (0, 1]; 1 is off
    top_k: int | None = None  # 0 is off
    min_p: float | int | None = None  # in [0, 1]; 0 is off
    repetition_penalty: float | int | None = None  # above 0; 1 is off; divides the logits of all tokens so far
    presence_penalty: float | int | None = None  # None: 0, off; subtracted once from each token already generated
    frequency_penalty: float | int | None = None  # None: 0, off; the same, as often as it was generated
    # Added to the logits of these token ids, from -100 to 100 each.
    logit_bias: Mapping[int | str, float] | None = dataclasses.field(default=None, hash=False)
    seed: int = 0
    n: int = 1  # answers to each input
    stop: str | Sequence[str] | None = ()  # end before any of these strings, which are looked for in the content
    stop_token_ids: Sequence[int] | None = ()  # end after any of these tokens, as after the checkpoint's own
    ignore_eos: bool = False  # the checkpoint's end tokens do not end the answer
    log_probs: bool = False  # results carry log_probs, sampling_log_probs and sampled
    enable_thinking: bool | None = None  # None: True, the template's default
    thinking_budget: int | None = None  # most tokens sampled in the think block; None: unlimited, 0: no thinking
    stop_thinking_text: str = "documentation"  # "documentation", "paper", or the text itself

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids or ()))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias or {}))
        for name, low, high, note in (
            ("temperature", 0.0, math.inf, "use 0 for greedy decoding"),
            ("top_p", 0.0, 1.0, "use 1 to turn it off"),
            ("min_p", 0.0, 1.0, "use 0 to turn it off"),
            ("presence_penalty", -2.0, 2.0, "use 0 to turn it off"),
            ("frequency_penalty", -2.0, 2.0, "use 0 to turn it off"),
            ("repetition_penalty", 0.0, math.inf, "use 1 to turn it off"),
        ):
            value = getattr(self, name)
            if value is None:
                continue
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not low <= value <= high or math.isinf(value):
                raise ValueError(f"{name} must be a number from {low:g} to {high:g}, got {value!r}: {note}")
        if self.top_p is not None and self.top_p <= 0:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p!r}: use 1 to turn it off")
        if self.repetition_penalty == 0:
            raise ValueError("repetition_penalty must be above 0, got 0: use 1 to turn it off")
        for name, least, note in (
            ("max_new_tokens", 1, "leave it out for as many as the context holds"),
            ("top_k", 0, "use 0 to turn it off"),
            ("min_tokens", 0, "use 0 to turn it off"),
            ("n", 1, "leave it out for one answer"),
            ("seed", 0, "choose a whole number below 2**32"),
            ("thinking_budget", 0, "use 0 for no thinking, leave it out for no limit"),
        ):
            value = getattr(self, name)
            if value is None and name not in ("min_tokens", "n", "seed"):
                continue
            limit = 2**32 if name == "seed" else 2**31
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value < limit:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}: {note}")
        for name in ("enable_thinking", "ignore_eos", "log_probs"):
            value = getattr(self, name)
            if not (isinstance(value, bool) or (value is None and name == "enable_thinking")):  # 0 is no False
                raise ValueError(f"{name} must be True or False, got {value!r}: choose one")
        if any(
            isinstance(token, bool) or not isinstance(token, int) or token < 0 for token in self.stop_token_ids or ()
        ):
            raise ValueError(f"stop_token_ids must be token ids, got {self.stop_token_ids!r}: see qwen3-jax tokenize")
        if self.max_new_tokens is not None and self.min_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_tokens must be at most max_new_tokens, got {self.min_tokens} and {self.max_new_tokens}: lower it"
            )
        if any(not isinstance(text, str) or not text for text in stop):
            raise ValueError(f"stop must hold non-empty strings, got {stop!r}: remove the empty one")
        if not isinstance(self.stop_thinking_text, str) or not self.stop_thinking_text:
            raise ValueError(f"stop_thinking_text must be a text, got {self.stop_thinking_text!r}: leave it out")

    @property
    def thinks(self) -> bool:
        """Whether this generation may think: the switch is on and the budget is not 0."""
        return self.enable_thinking is not False and self.thinking_budget != 0

    @property
    def stop_text(self) -> str:
        """The text fed at the budget; it always closes the block."""
        text = NAMED_STOP_TEXTS.get(self.stop_thinking_text, self.stop_thinking_text)
        return text if "</think>" in text else text.rstrip("\n") + "\n</think>\n\n"

    def resolve(self, defaults: GenerationDefaults, thinks: bool) -> "GenerationConfig":
        """Fills the sampling fields left None, from the checkpoint, else from the recommended values of the mode."""
        filled: dict[str, Any] = {
            name: next(v for v in (getattr(self, name), getattr(defaults, name), recommended) if v is not None)
            for name, recommended in _RECOMMENDED[thinks].items()
        }
        filled |= {name: getattr(self, name) or 0.0 for name in ("presence_penalty", "frequency_penalty")}
        return dataclasses.replace(self, **filled)


def _biases(biases: Mapping[int | str, float]) -> dict[int, float]:
    """`logit_bias` as numbers; keys may be strings, as JSON has them.

    Raises:
      ValueError: a key that is no token id, a value out of range, too many of them.
    """
    out: dict[int, float] = {}
    note = "give {token id: -100 to 100}"
    if not isinstance(biases, Mapping):
        raise ValueError(f"logit_bias must be a mapping of token ids to numbers, got {biases!r}: {note}")
    for token, bias in biases.items():
        known = isinstance(token, int) or (isinstance(token, str) and token.isdecimal())
        number = isinstance(bias, (int, float)) and not isinstance(bias, bool)
        if not known or isinstance(token, bool) or int(token) < 0 or not number or not -100 <= bias <= 100:
            raise ValueError(f"logit_bias must map token ids to -100 to 100, got {token!r}: {bias!r}: {note}")
        out[int(token)] = float(bias)
    if len(out) > MAX_BIASES:
        raise ValueError(f"logit_bias must name at most {MAX_BIASES} tokens, got {len(out)}: name fewer")
    return out
