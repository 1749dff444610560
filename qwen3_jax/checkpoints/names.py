"""Which tensors of a Hugging Face checkpoint make up which parameter, derived from their one declaration."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qwen3_jax.checkpoints.safetensors import FLOATING, TensorEntry
from qwen3_jax.config import ModelConfig
from qwen3_jax.parameters.specs import Layout, ParamSpec, layer_index, spec_tree

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_BUFFERS = re.compile(r"(.*\.)?rotary_emb\.inv_freq")  # of files written by old releases: derived from the config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf:
    """One parameter and the tensors it is made of.

    Attributes:
      path: keys in the parameter tree, ("segments_0", "q_proj").
      axes: logical axis of each dimension.
      tensors: tensor name by its index along the leading axes of the parameter that the files do not have: () for a
        tensor of its own, (layer,) in a stack, (expert,) or (layer, expert) for experts.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    tensors: Mapping[tuple[int, ...], str]

    @property
    def stacked(self) -> bool:
        return self.axes[0] == "layers"

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        return self.shape[len(next(iter(self.tensors))) :]

    def layer(self, index: int) -> "Leaf":
        """One layer of a stack."""
        tensors = {key[1:]: name for key, name in self.tensors.items() if key[0] == index}
        return dataclasses.replace(self, shape=self.shape[1:], axes=self.axes[1:], tensors=tensors)


def leaves(config: ModelConfig, layout: Layout, tree: Mapping[str, Any] | None = None) -> Iterator[Leaf]:
    """Every parameter in the given layout; of another declaration than the model's own with `tree` (in that layout)."""
    for key, value in (spec_tree(config, layout) if tree is None else tree).items():
        if isinstance(value, ParamSpec):
            yield Leaf(path=(key,), shape=value.shape, axes=value.axes, tensors={(): value.hf_name})
            continue
        number = int(key.rpartition("_")[2])
        for name, spec in value.items():
            tensors: dict[tuple[int, ...], str] = {}
            experts = spec.shape[spec.axes.index("expert")] if "expert" in spec.axes else None
            for layer in range(spec.shape[0]) if layout == "stacked" else [None]:
                lead = () if layer is None else (layer,)
                hf_layer = number if layer is None else layer_index(config, number, layer)
                if experts is None:
                    tensors[lead] = spec.hf_name.format(layer=hf_layer)
                else:
                    for expert in range(experts):
                        tensors[*lead, expert] = spec.hf_name.format(layer=hf_layer, expert=expert)
            yield Leaf(path=(key, name), shape=spec.shape, axes=spec.axes, tensors=tensors)


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that the checkpoint of this architecture holds."""
    return {name: leaf.tensor_shape for leaf in leaves(config, "unrolled") for name in leaf.tensors.values()}


def check_tensors(config: ModelConfig, entries: Mapping[str, TensorEntry], directory: Path) -> bool:
    """Refuses by name what is missing, extra, of another shape or not a floating-point tensor.

    Returns:
      Whether the embedding is tied and the file holds a head all the same (the published 0.6B and 1.7B do): it must
      then equal the embedding.

    Raises:
      ValueError: in one line, every difference (the first five by name) with both shapes.
    """
    expected = expected_shapes(config)
    surplus_head = config.tie_word_embeddings and HEAD in entries
    if surplus_head:
        expected[HEAD] = expected[EMBEDDING]
    compare_tensors(expected, entries, directory)
    return surplus_head


def differences(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], have: str) -> list[str]:
    """In: {"a": (2, 3)}, {"b": (4,)}, "got"     Out: ["a: expected [2, 3], got none", "b: expected none, got [4]"]"""
    names = [name for name in dict.fromkeys([*expected, *found]) if expected.get(name) != found.get(name)]
    texts = ([list(shapes[name]) if name in shapes else "none" for shapes in (expected, found)] for name in names)
    return [f"{name}: expected {ours}, {have} {theirs}" for name, (ours, theirs) in zip(names, texts, strict=True)]


def compare_tensors(
    expected: Mapping[str, tuple[int, ...]], entries: Mapping[str, TensorEntry], directory: Path
) -> None:
    """Refuses files whose tensors are not the expected ones; see `check_tensors`."""
    found = {name: entry.shape for name, entry in entries.items() if name in expected or not _BUFFERS.fullmatch(name)}
    problems = differences(expected, found, "the files have")
    problems += [
        f"{name}: expected one of {', '.join(FLOATING)}, the files have {entries[name].dtype_name}"
        for name, shape in expected.items()
        if found.get(name) == shape and entries[name].dtype_name not in FLOATING
    ]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(
            f"the tensors in {directory} must be those of its config.json, got {len(problems)} that differ: "
            f"{'; '.join(problems[:5])}{more}: correct config.json or fetch the files again"
        )
