"""Tiny random Qwen3 models of transformers, the reference that parity is measured against."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

BASE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512,
    "initializer_range": 0.08,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "use_cache": True,
    "use_sliding_window": False,
    "sliding_window": None,
    "max_window_layers": 3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
}
MOE: dict[str, Any] = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}

# One entry a way in which architectures differ.
VARIANTS: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "mha": {"num_key_value_heads": 4},
    "mqa": {"num_key_value_heads": 1},
    "square": {"head_dim": 12},  # hidden_size / num_attention_heads; everywhere else they differ
    "yarn": {"rope_parameters": YARN},
    "moe": MOE,
    "moe_unnormalised": MOE | {"norm_topk_prob": False, "tie_word_embeddings": True},
    "moe_mlp_only": MOE | {"num_hidden_layers": 4, "mlp_only_layers": [0, 2]},
    "moe_step": MOE | {"num_hidden_layers": 4, "decoder_sparse_step": 2, "rope_parameters": YARN},
}


def build(variant: str = "untied", seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A random model in evaluation mode, eager attention and experts; norm weights differ from 1 so that each acts."""
    values = BASE | VARIANTS[variant] | changes
    config_class, model_class = (
        (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM)
        if "num_experts" in values
        else (transformers.Qwen3Config, transformers.Qwen3ForCausalLM)
    )
    torch.manual_seed(seed)
    config = config_class(**values)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    model = model_class(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.copy_(1 + 0.3 * torch.randn_like(weight))
    return model.to(dtype)


def save(model: Any, directory: Path, **options: Any) -> Path:
    model.save_pretrained(directory, **options)
    return directory


def load(directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, attn_implementation="eager", experts_implementation="eager"
    ).eval()


def logits(model: Any, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """float32[B, T, V]."""
    kwargs = {}
    if mask is not None:
        kwargs = {
            "attention_mask": torch.tensor(mask.astype(np.int64)),
            "position_ids": torch.tensor(np.maximum(np.cumsum(mask, 1) - 1, 0)),
        }
    with torch.no_grad():
        return model(input_ids=torch.tensor(tokens.astype(np.int64)), **kwargs).logits.float().numpy()
