"""Low-rank adapters."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Adapters in the sense of LoRA (Hu et al., 2106.09685), with PEFT's names. The base (`init_from`) is frozen."""

    r: int = 8  # rank
    lora_alpha: float = 16.0  # the update is scaled by lora_alpha / r
    # Projections that have an adapter, in every layer; [all-linear] means these and gate_proj, up_proj, down_proj.
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    use_rslora: bool = False  # scale by lora_alpha / sqrt(r)
