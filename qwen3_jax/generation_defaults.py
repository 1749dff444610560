"""What a checkpoint says about generation: its `generation_config.json`."""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_READ = (
    "bos_token_id eos_token_id pad_token_id do_sample temperature top_p top_k min_p repetition_penalty "
    "transformers_version _from_model_config use_cache max_length"  # say nothing about which tokens are chosen
).split()
_OFF: tuple[Any, ...] = (None, False, 0, 1, "", [], {})  # what switches a setting off in Hugging Face


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """Sampling defaults and end tokens of a checkpoint; None where its file says nothing.

    Attributes:
      eos_token_ids: tokens that end an answer; empty when the file is missing, then the tokenizer's own are used.
    """

    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    temperature: float | int | None = None
    top_p: float | int | None = None
    top_k: int | None = None
    min_p: float | int | None = None
    repetition_penalty: float | int | None = None

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> "GenerationDefaults":
        """Reads Hugging Face's `generation_config.json`; `do_sample: false` is temperature 0. A setting that this
        project does not have is a warning.

        Raises:
          ValueError: a value of the wrong type.
        """
        eos = hf.get("eos_token_id")
        ids = [] if eos is None else eos if isinstance(eos, list) else [eos]
        values: dict[str, Any] = {name: hf.get(name) for name in _SAMPLING}
        for name, value in [*values.items(), *(("eos_token_id", i) for i in ids)]:
            integer = name in ("top_k", "eos_token_id")
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int if integer else (int, float))
            ):
                raise ValueError(f"generation_config.json: {name} must be a number, got {value!r}: correct the file")
        if hf.get("do_sample") is False:
            values["temperature"] = 0.0
        ends = {name: hf.get(name) for name in ("bos_token_id", "pad_token_id")}
        for name, value in ends.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise ValueError(f"generation_config.json: {name} must be a number, got {value!r}: correct the file")
        idle = sorted(key for key, value in hf.items() if key not in _READ and value not in _OFF)
        if idle:
            warnings.warn(f"generation_config.json: no effect: {', '.join(idle)}", stacklevel=2)
        return cls(eos_token_ids=tuple(ids), **ends, **values)

    def to_hf(self) -> dict[str, Any]:
        """The published spelling."""
        greedy = self.temperature == 0
        out: dict[str, Any] = {"do_sample": not greedy}
        if self.eos_token_ids:
            out["eos_token_id"] = list(self.eos_token_ids)
        for name in ("bos_token_id", "pad_token_id", *_SAMPLING):
            value = getattr(self, name)
            if value is not None and not (greedy and name == "temperature"):
                out[name] = value
        return out
