"""The analytic model of a step on a mesh: memory and communication from the configuration alone, without compiling.

It follows the design (docs/decisions.md, sharding): dense weights are sharded over fsdp and expert and gathered in
bfloat16 where they are used, their gradients are reduced and scattered; experts lie split over `expert`, tokens go
there and back; heads and features are split over `tensor`, whose partial sums are reduced. It ranks meshes and is held
against compiled byte counts in docs/results/plans.md; what a plan reports is the compiled program.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping

from qwen3_jax.config import ModelConfig
from qwen3_jax.network.buckets import PREFILL_CHUNK
from qwen3_jax.parameters.specs import global_specs, layer_specs
from qwen3_jax.plans.flops import Mode, experts_met
from qwen3_jax.sharding import DEFAULT_RULES, MESH_AXES, Rules, axes_of

_WIDE, _NARROW = 4, 2  # bytes of float32 and bfloat16
_LOSS_CHUNK = 2048  # tokens of a device whose logits exist at once while training
_FEW_ROWS = 16  # rows an expert gets on average, up to which tokens are gathered and not sent

Key = tuple[str, tuple[str, ...]]  # kind and mesh axes
_Sent = defaultdict[Key, float]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of one device and one step.

    Attributes:
      parameters, optimizer, cache: bytes.
      parts: bytes of what comes and goes, by name; those that are there at the most demanding moment.
      communication: bytes received, by kind and mesh axes, as `qwen3_jax.sharding.ahead_of_time.traffic` counts them.
      hbm_traffic: bytes read from and written to memory.
    """

    parameters: int
    optimizer: int
    cache: int
    parts: dict[str, int]
    communication: dict[Key, float]
    hbm_traffic: float

    @property
    def activations(self) -> int:
        return sum(self.parts.values())

    @property
    def peak(self) -> int:
        return self.parameters + self.optimizer + self.cache + self.activations


@dataclasses.dataclass(frozen=True)
class Shards:
    """Sizes of a mesh, and what follows from them for one model and batch.

    Attributes:
      rows, tokens: of one device.
      weight_axes: mesh axes over which dense weights are sharded between uses, and weight_shards: their devices.
    """

    data: int
    fsdp: int
    expert: int
    context: int
    tensor: int
    rows: float
    tokens: float
    weight_axes: tuple[str, ...]
    weight_shards: int


def shards(sizes: Mapping[str, int], batch_size: int, tokens_a_row: int, rules: Rules) -> Shards:
    """From the sizes of a mesh's axes."""
    rows = batch_size / (sizes["data"] * sizes["fsdp"] * sizes["expert"])
    weight_axes = axes_of("embed", rules)
    weight_shards = math.prod(sizes[axis] for axis in weight_axes)
    tokens = rows * tokens_a_row / sizes["context"]
    axes = {axis: sizes[axis] for axis in MESH_AXES}
    return Shards(rows=rows, tokens=tokens, weight_axes=weight_axes, weight_shards=weight_shards, **axes)


def estimate(
    config: ModelConfig,
    sizes: Mapping[str, int],
    mode: Mode,
    sequence_length: int,
    batch_size: int,
    rules: Rules = DEFAULT_RULES,
) -> Estimate:
    """In:  qwen3-0.6b on fsdp=8, training     Out: parameters of 596 million / 8 * 4 bytes, ...

    Of `rules` it knows what `embed` says: over which axes dense weights are sharded between uses.
    """
    if mode == "train":
        return _train(config, shards(sizes, batch_size, sequence_length, rules))
    chunk = min(sequence_length, PREFILL_CHUNK) if mode == "prefill" else 1
    calls = -(-sequence_length // chunk) if mode == "prefill" else 1
    return _infer(config, shards(sizes, batch_size, chunk, rules), sequence_length, calls)


def _layer(config: ModelConfig, sparse: bool) -> tuple[int, int]:
    """Dense parameters and expert parameters of one layer."""
    dense = experts = 0
    for spec in layer_specs(config, sparse).values():
        if spec.axes[0] == "expert":
            experts += math.prod(spec.shape)
        else:
            dense += math.prod(spec.shape)
    return dense, experts


def _vocab(config: ModelConfig) -> int:
    return sum(math.prod(spec.shape) for name, spec in global_specs(config).items() if name != "norm")


def _stored(config: ModelConfig, s: Shards) -> float:
    """Parameters that one device keeps."""
    total = _vocab(config) / (s.weight_shards * s.tensor)
    for sparse, length in config.segments:
        dense, experts = _layer(config, sparse)
        total += length * (dense / (s.weight_shards * s.tensor) + experts / (s.expert * s.fsdp * s.tensor))
    return total


def _used(config: ModelConfig, s: Shards, sparse: bool) -> float:
    """Parameters of a layer that one device multiplies with, gathered."""
    dense, experts = _layer(config, sparse)
    return dense / s.tensor + experts / (s.expert * s.tensor)


def _weights(config: ModelConfig, s: Shards, gathers: int, scatters: int, sent: _Sent) -> None:
    """Gathering of weights and, where they are trained, scattering of gradients."""
    for sparse, length in config.segments:
        dense, experts = _layer(config, sparse)
        for size, axes, ways in (
            (dense / s.tensor, s.weight_axes, s.weight_shards),
            (experts / (s.expert * s.tensor), ("fsdp",), s.fsdp),
        ):
            moved = length * size * _NARROW * (ways - 1) / ways
            sent["all-gather", axes] += gathers * moved
            sent["reduce-scatter", axes] += scatters * moved
            if scatters:  # copies of the parameters, and parts of a sequence, add up their gradients
                for axis, copies in (("data", s.data), ("context", s.context)):
                    part = size if axis == "context" else size / ways
                    sent["all-reduce", (axis,)] += 2 * length * part * _NARROW * (copies - 1) / copies


def _between_layers(config: ModelConfig, s: Shards, passes: int, exchanges: int, sent: _Sent) -> None:
    """Partial sums over `tensor` and keys over `context` of `passes` forward passes; tokens to their experts or back,
    `exchanges` times a layer. A few tokens go to all devices that share the experts, and their sums come back."""
    hidden = s.tokens * config.hidden_size * _NARROW
    layers = config.num_hidden_layers
    sparse = sum(length for sparse, length in config.segments if sparse)
    sent["all-reduce", ("tensor",)] += passes * layers * 2 * 2 * hidden * (s.tensor - 1) / s.tensor
    keys = 2 * config.num_key_value_heads / min(s.tensor, config.num_key_value_heads) * config.head_dim
    sent["all-gather", ("context",)] += passes * layers * s.tokens * keys * _NARROW * (s.context - 1)
    if exchanges and s.tokens * s.expert * config.num_experts_per_tok > _FEW_ROWS * config.num_experts:
        rows = hidden * config.num_experts_per_tok * (s.expert - 1) / s.expert
        sent["all-to-all", ("expert",)] += exchanges * sparse * rows
    else:
        for kind in ("all-gather", "reduce-scatter"):
            sent[kind, ("expert",)] += passes * sparse * hidden * (s.expert - 1)


def _train(config: ModelConfig, s: Shards) -> Estimate:
    sent: _Sent = defaultdict(float)
    _weights(config, s, gathers=2, scatters=1, sent=sent)
    _between_layers(config, s, passes=3, exchanges=5, sent=sent)
    head = config.vocab_size * config.hidden_size / s.tensor
    moved = head * _NARROW * (s.weight_shards - 1) / s.weight_shards
    sent["all-gather", s.weight_axes] += moved
    sent["reduce-scatter", s.weight_axes] += moved
    stored = _stored(config, s)
    hidden = s.tokens * config.hidden_size
    layers = config.num_hidden_layers
    largest = max(_used(config, s, sparse) for sparse, _ in config.segments)
    working = {
        "gathered weights of a layer": 3 * _NARROW * largest,
        "one layer forward and backward": _layer_activations(config, s),
    }
    loss = {
        "gathered head and its gradient": 2 * head * _NARROW,
        "logits of a chunk": 2 * min(s.tokens, _LOSS_CHUNK) * config.vocab_size / s.tensor * _WIDE,
    }
    parts = {
        "gradients": _WIDE * stored,
        "inputs of the layers, kept for the backward pass": layers * hidden * _NARROW,
        **max(working, loss, key=lambda parts: sum(parts.values())),
    }
    weights = sum(length * _used(config, s, sparse) for sparse, length in config.segments)
    traffic = 7 * _WIDE * stored + 7 * _NARROW * weights + 4 * _activation_traffic(config, s)
    return Estimate(int(_WIDE * stored), int(2 * _WIDE * stored), 0, _whole(parts), _received(sent), traffic)


def _layer_activations(config: ModelConfig, s: Shards) -> float:
    """Bytes of one layer's intermediate results, forward and backward, at their most."""
    heads = (2 * config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim / s.tensor
    elements = s.tokens * (6 * config.hidden_size + 2 * heads)
    inner = 0.0
    for sparse, _ in config.segments:
        if sparse:
            rows = s.tokens * config.num_experts_per_tok * min(2.0, s.expert)
            inner = max(inner, rows * (2 * config.hidden_size + 4 * config.moe_intermediate_size / s.tensor))
        else:
            inner = max(inner, s.tokens * 6 * config.intermediate_size / s.tensor)
    return _NARROW * (elements + inner)


def _activation_traffic(config: ModelConfig, s: Shards) -> float:
    """Bytes that one forward pass's products read and write."""
    heads = (3 * config.num_attention_heads + 4 * config.num_key_value_heads) * config.head_dim / s.tensor
    total = 0.0
    for sparse, length in config.segments:
        if sparse:
            inner = config.num_experts_per_tok * (2 * config.hidden_size + 4 * config.moe_intermediate_size / s.tensor)
        else:
            inner = 2 * config.hidden_size + 4 * config.intermediate_size / s.tensor
        total += length * s.tokens * (6 * config.hidden_size + heads + inner)
    return _NARROW * total


def _infer(config: ModelConfig, s: Shards, sequence_length: int, calls: int) -> Estimate:
    sent: _Sent = defaultdict(float)
    _weights(config, s, gathers=1, scatters=0, sent=sent)
    _between_layers(config, s, passes=1, exchanges=2, sent=sent)
    head = config.vocab_size * config.hidden_size / s.tensor
    sent["all-gather", s.weight_axes] += head * _NARROW * (s.weight_shards - 1) / s.weight_shards
    # A row is sampled where it lives, from all of its logits.
    logits = s.rows * config.vocab_size * _WIDE
    sent["all-gather", ("tensor",)] += logits * (s.tensor - 1) / s.tensor
    stored = _stored(config, s)
    cache_heads = max(config.num_key_value_heads, s.tensor) / s.tensor
    slots = s.rows * sequence_length
    cache = 2 * config.num_hidden_layers * slots * cache_heads * config.head_dim * _NARROW
    gathered = max(_used(config, s, sparse) for sparse, _ in config.segments) if s.weight_shards > 1 else 0.0
    scores = s.tokens * sequence_length * config.num_attention_heads / s.tensor * (_WIDE + _NARROW)
    seen = s.rows * config.vocab_size
    parts = {
        "gathered weights of a layer": 2 * _NARROW * gathered,
        "one layer": _layer_activations(config, s),
        "scores of attention": scores,
        "logits and what sampling makes of them": 4 * logits + seen,
    }
    traffic = cache + head * _NARROW + _activation_traffic(config, s)
    group = s.tokens * s.expert
    for sparse, length in config.segments:
        dense, experts = _layer(config, sparse)
        met = experts_met(config, max(int(group), 1)) / config.num_experts if sparse else 0.0
        traffic += length * _NARROW * (dense / s.tensor + experts / (s.expert * s.tensor) * met)
    return Estimate(int(_NARROW * stored), 0, int(cache), _whole(parts), _received(sent, calls), calls * traffic)


def _whole(parts: Mapping[str, float]) -> dict[str, int]:
    return {name: int(size) for name, size in parts.items() if size >= 1}


def _received(sent: _Sent, calls: int = 1) -> dict[Key, float]:
    return {key: amount * calls for key, amount in sent.items() if amount > 0}
