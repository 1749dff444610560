"""Departures from Qwen3's architecture, which config.json has no keys for."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """What an ablation takes away from the network; such a model has no Hugging Face form and is not exported."""

    qk_norm: bool = True  # the norm of queries and keys
