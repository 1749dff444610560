"""From a checkpoint in Hugging Face form to a model and its parameters, and back."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from qwen3_jax.checkpoints.files import read_entries, resolve_checkpoint
from qwen3_jax.checkpoints.names import EMBEDDING, HEAD, check_tensors
from qwen3_jax.checkpoints.safetensors import TensorEntry, read_blocks
from qwen3_jax.checkpoints.save import save_pretrained as save_pretrained
from qwen3_jax.checkpoints.stream import load_parameters
from qwen3_jax.config import ModelConfig, read_json_object
from qwen3_jax.generation_defaults import GenerationDefaults
from qwen3_jax.network.model import Qwen3
from qwen3_jax.parameters.placement import Placement, place
from qwen3_jax.parameters.specs import Layout, Params
from qwen3_jax.sharding import DEFAULT_RULES, Rules, as_auto

DTYPE_NAMES = ("bfloat16", "float32", "float16")


def default_layout() -> Layout:
    """Where separate layers decode faster than a scan over stacked ones: the one place that decides. XLA copies each
    layer out of a stack on CPU and GPU (docs/results/device.md); on TPU it reads it in place."""
    return "stacked" if jax.default_backend() == "tpu" else "unrolled"


def from_pretrained(
    path_or_hub_id: str | Path,
    dtype: Any = "bfloat16",
    mesh: Mesh | None = None,
    layout: Layout | None = None,
    rules: Rules = DEFAULT_RULES,
) -> tuple[Qwen3, Params]:
    """Reads a Qwen3 checkpoint in Hugging Face form.

    Args:
      path_or_hub_id: a directory, or an id such as "Qwen/Qwen3-0.6B".
      dtype: of the parameters and the activations: "bfloat16", "float32" or "float16", by name or as a dtype.
      mesh: the devices to spread the parameters over, see `sharding.make_mesh`; each slice goes straight onto the
        device that owns it.
      layout: "stacked" or "unrolled" layers; None takes `default_layout()`.
      rules: from the logical axes declared with the parameters to the axes of the mesh.

    Returns:
      The model and its parameters. `model.generation` holds the checkpoint's sampling defaults and end tokens.

    Raises:
      FileNotFoundError: a missing directory, repository or file.
      ValueError: another architecture, a damaged file, tensors that are not those of config.json, or a mesh that does
        not divide the model.
    """
    dtype = parse_dtype(dtype)
    if layout not in (None, "stacked", "unrolled"):
        raise ValueError(f"layout must be 'stacked', 'unrolled' or None, got {layout!r}: choose one")
    layout = layout or default_layout()
    directory = resolve_checkpoint(path_or_hub_id)
    config = ModelConfig.from_file(directory / "config.json")
    mesh = None if mesh is None else as_auto(mesh)
    placement = Placement() if mesh is None else place(config, mesh, rules)
    generation = read_generation(directory)
    entries = read_entries(directory)
    surplus_head = check_tensors(config, entries, directory)
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1)), "qwen3-jax-load") as pool:
        comparison = pool.submit(check_tied, entries) if surplus_head else None
        try:
            params = load_parameters(config, layout, entries, dtype, mesh, pool, placement.rules)
            if comparison:
                comparison.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    model = Qwen3(config, layout=layout, param_dtype=dtype, generation=generation, placement=placement)
    return model, params


def parse_dtype(dtype: Any) -> np.dtype:
    """In: "bfloat16", jnp.bfloat16 or a dtype. Out: the dtype.

    Raises:
      ValueError: not a floating-point dtype that parameters may have.
    """
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", getattr(dtype, "name", repr(dtype)))
    if name not in DTYPE_NAMES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPE_NAMES)}, got {name}: choose one")
    return np.dtype(getattr(jnp, name))


def read_generation(directory: Path) -> GenerationDefaults:
    """Sampling defaults and end tokens from generation_config.json; without it the token ids of config.json, as in
    Hugging Face."""
    path = directory / "generation_config.json"
    if path.is_file():
        return GenerationDefaults.from_hf(read_json_object(path))
    hf = read_json_object(directory / "config.json")
    return GenerationDefaults.from_hf({key: hf.get(key) for key in ("eos_token_id", "bos_token_id", "pad_token_id")})


def check_tied(entries: Mapping[str, TensorEntry]) -> None:
    """Compares a head that a file holds although it is tied with the embedding, block by block.

    Raises:
      ValueError: they differ.
    """
    embedding, head = entries[EMBEDDING], entries[HEAD]
    same = embedding.dtype == head.dtype
    kind = embedding.dtype if same else np.dtype(np.float32)
    for ours, theirs in zip(read_blocks(embedding, kind), read_blocks(head, kind), strict=True):
        if not np.array_equal(ours.view(np.uint8), theirs.view(np.uint8)):
            raise ValueError(
                f"{HEAD} must equal {EMBEDDING} when tie_word_embeddings is true, got two different tensors: set it to "
                "false in config.json, or remove the head"
            )
