"""Adapters in PEFT's format, and adapters merged into the base.

A directory holds adapter_config.json and adapter_model.safetensors, as `peft` writes and reads them:
https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qwen3_jax.checkpoints.files import resolve_checkpoint
from qwen3_jax.checkpoints.host_copy import pending_tensors
from qwen3_jax.checkpoints.names import compare_tensors, leaves
from qwen3_jax.checkpoints.safetensors import PendingTensor, TensorEntry, read_blocks, read_header, write_file
from qwen3_jax.checkpoints.save import save_tensors
from qwen3_jax.checkpoints.staging import staged
from qwen3_jax.checkpoints.stream import load_parameters
from qwen3_jax.config import ModelConfig, read_json_object
from qwen3_jax.files import write_json
from qwen3_jax.network.model import Qwen3
from qwen3_jax.parameters.adapters import Lora, adapter_tree, make_lora
from qwen3_jax.parameters.specs import Params, layout_of
from qwen3_jax.sharding import mesh_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TARGET = re.compile(r"\.(?:self_attn|mlp)\.(\w+)\.lora_A\.weight$")
# What else PEFT's configuration says, with the value under which it changes nothing here.
_PLAIN: dict[str, Any] = {
    "bias": "none",
    "rank_pattern": {},
    "alpha_pattern": {},
    **dict.fromkeys("fan_in_fan_out use_dora use_qalora lora_bias".split(), False),
    **dict.fromkeys("layers_to_transform layers_pattern modules_to_save target_parameters".split()),
    **dict.fromkeys("trainable_token_indices layer_replication alora_invocation_tokens".split()),
}


def save_adapters(directory: str | Path, model: Qwen3, adapters: Params, base: str = "") -> None:
    """Writes adapters so that `peft.PeftModel.from_pretrained` and `load_adapters` read them.

    As `save_pretrained` it writes beside the target and then moves, and many processes call it together.

    Args:
      model: the one with `lora`.
      adapters: in either layout.
      base: path or hub id of the base model, for whoever loads the adapters.

    Raises:
      ValueError: the model has no `lora`, or the adapters are not its own.
    """
    if model.lora is None:
        raise ValueError("a model must have lora to save its adapters, got lora=None: pass the one that was trained")
    lora = model.lora
    tensors = pending_tensors(model.config, adapters, lambda config, layout: adapter_tree(config, lora, layout))

    def write(tensors: Sequence[PendingTensor]) -> None:
        with staged(Path(directory)) as stage:
            write_file(stage / WEIGHTS, tensors)
            write_json(stage / CONFIG, adapter_config(lora, base))

    save_tensors(write, tensors, adapters)


def adapter_config(lora: Lora, base: str) -> dict[str, Any]:
    """adapter_config.json."""
    whole = float(lora.lora_alpha).is_integer()
    values = {
        "base_model_name_or_path": base or None,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(lora.lora_alpha) if whole else lora.lora_alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": lora.r,
        "target_modules": list(lora.target_modules),
        "task_type": "CAUSAL_LM",
        "use_rslora": lora.use_rslora,
    }
    return dict(sorted((_PLAIN | values).items()))


def load_adapters(directory: str | Path, model: Qwen3, params: Params) -> tuple[Qwen3, Params]:
    """Reads adapters that `save_adapters` or `peft` wrote, for a model that is loaded.

    Args:
      directory: it holds adapter_config.json and adapter_model.safetensors; or an id of the hub.
      model, params: the base; the adapters get its layout and mesh.

    Returns:
      The model with `lora` set, and float32 adapters: `model.apply({"params": with_adapters(params, adapters)}, ...)`.

    Raises:
      FileNotFoundError: a missing directory or file.
      ValueError: another method than plain LoRA, or tensors that are not those of this model.
    """
    lora, entries = read_adapters(directory, model.config)
    layout, mesh = layout_of(params), mesh_of(params)
    tree = adapter_tree(model.config, lora, layout)
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1)), "qwen3-jax-load") as pool:
        adapters = load_parameters(
            model.config, layout, entries, np.dtype(np.float32), mesh, pool, model.placement.rules, tree
        )
    return model.clone(lora=lora), adapters


def read_adapters(directory: str | Path, config: ModelConfig) -> tuple[Lora, dict[str, TensorEntry]]:
    """What the adapters in a directory are and where their tensors lie; see `load_adapters` for what is raised."""
    directory = resolve_checkpoint(directory)
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory} must hold {name}, got none: give the directory of an adapter")
    values = read_json_object(directory / CONFIG)
    if values.get("peft_type") != "LORA":
        raise ValueError(f"{directory / CONFIG} must have peft_type LORA, got {values.get('peft_type')!r}: no other")
    changed = [name for name, plain in _PLAIN.items() if name in values and (values[name] or plain) != plain]
    if changed:
        raise ValueError(
            f"{directory / CONFIG} must be of plain LoRA, got {', '.join(f'{n}={values[n]!r}' for n in changed)}: "
            "merge the adapter with peft"
        )
    entries = read_header(directory / WEIGHTS)
    targets = sorted({match[1] for name in entries if (match := _TARGET.search(name))})
    try:
        lora = make_lora(config, values["r"], values["lora_alpha"], targets, bool(values.get("use_rslora")))
    except KeyError as error:
        raise ValueError(f"{directory / CONFIG} must have {error}, got none: fetch it again") from None
    expected = leaves(config, "unrolled", adapter_tree(config, lora, "unrolled"))
    shapes = {name: leaf.tensor_shape for leaf in expected for name in leaf.tensors.values()}
    compare_tensors(shapes, entries, directory)
    return lora, entries


def merge_adapters(model: Qwen3, params: Params, adapters: Params, donate: bool = False) -> tuple[Qwen3, Params]:
    """The plain model that computes what base and adapters do: W + scale * B A, added in float32.

    Args:
      donate: let the base's arrays go as they are merged; `params` must not be used afterwards.

    Returns:
      The model without `lora` and its parameters; those without an adapter are the base's own arrays.
    """
    assert model.lora is not None
    merged = {key: dict(value) if isinstance(value, Mapping) else value for key, value in params.items()}
    for key, layer in adapters.items():
        for name in model.lora.target_modules:
            weight = merged[key].pop(name)
            add = _merge_donated if donate else _merge
            a, b = layer[f"{name}_lora_A"], layer[f"{name}_lora_B"]
            merged[key][name] = jax.device_put(add(weight, a, b, model.lora.scale), weight.sharding)
    return model.clone(lora=None), merged


def _merged(
    weight: Float[Array, "*n O I"], a: Float[Array, "*n r I"], b: Float[Array, "*n O r"], scale: float
) -> Float[Array, "*n O I"]:
    update = jnp.float32(scale) * jnp.matmul(b, a, preferred_element_type=jnp.float32)
    return (weight.astype(jnp.float32) + update).astype(weight.dtype)


_merge = jax.jit(_merged, static_argnums=3)
_merge_donated = jax.jit(_merged, static_argnums=3, donate_argnums=0)


def merged_blocks(
    lora: Lora, entries: Mapping[str, TensorEntry], name: str
) -> Callable[[Iterator[np.ndarray]], Iterator[np.ndarray]] | None:
    """For a tensor of a checkpoint: what turns its consecutive float32 rows into merged ones, a block at a time; None
    where it has no adapter."""
    prefix = "base_model.model." + name.removesuffix("weight")
    if f"{prefix}lora_A.weight" not in entries:
        return None
    a, b = (_read(entries[f"{prefix}lora_{part}.weight"]) for part in "AB")

    def merge(blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        at = 0
        for block in blocks:
            yield block + np.float32(lora.scale) * (b[at : at + len(block)] @ a)
            at += len(block)

    return merge


def _read(entry: TensorEntry) -> np.ndarray:
    return np.concatenate(list(read_blocks(entry, np.dtype(np.float32))))
