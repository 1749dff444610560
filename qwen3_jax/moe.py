"""The mixture of experts: one router, several executions of the experts that agree.

Every token goes through its `num_experts_per_tok` best experts; no token is dropped and no expert has a capacity.
Dimensions: T tokens, X experts per token, A = T * X assignments, E experts, D model, F feed-forward of one expert.
"""

from typing import Literal, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwen3_jax.config import ModelConfig
from qwen3_jax.grouped_matmul import Implementation, grouped_matmul
from qwen3_jax.linear import linear
from qwen3_jax.params import Params
from sharding import DEFAULT_RULES, Rules, current_mesh

Execution = Literal["reference", "gather", "tiles", "ragged_dot"]
BACKENDS = ("auto", "grouped", *get_args(Execution))


class Routing(NamedTuple):
    """Where each token goes.

    Attributes:
      weights: [T, X] in the activations' dtype, largest first.
      experts: int32[T, X].
      logits: [T, E] in the activations' dtype, what the load-balancing loss is made of.
    """

    weights: Float[Array, "T X"]
    experts: Int[Array, "T X"]
    logits: Float[Array, "T E"]


def route(
    x: Float[Array, "T D"], router: Float[Array, "E D"], num_experts_per_tok: int, norm_topk_prob: bool
) -> Routing:
    """Softmax over all experts in float32, then the best of them, made to sum to 1 if `norm_topk_prob` (Hugging Face's
    `Qwen3MoeTopKRouter`). Experts of equal probability are taken in order of their number."""
    with jax.named_scope("router"):
        logits = linear(x, router)
        probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
        weights, experts = jax.lax.top_k(probabilities, num_experts_per_tok)
        if norm_topk_prob:
            weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
        return Routing(weights.astype(logits.dtype), experts, logits)


class RouterReport(NamedTuple):
    """What the router did, for the load-balancing loss and the metrics.

    Attributes:
      logits: [B, T, E] in the activations' dtype.
      load: int32[E], assignments each expert got, over all devices.
    """

    logits: Float[Array, "B T E"]
    load: Int[Array, " E"]


def moe(
    x: Float[Array, "B T D"], params: Params, config: ModelConfig, backend: str = "auto", rules: Rules = DEFAULT_RULES
) -> tuple[Float[Array, "B T D"], RouterReport]:
    """Routes each token and mixes what its experts make of it.

    Args:
      x: normed activations.
      params: `router` [E, D], `experts_gate_proj` and `experts_up_proj` [E, F, D], `experts_down_proj` [E, D, F].
      config: `num_experts_per_tok` and `norm_topk_prob` of it.
      backend: how the experts run, see `choose_execution`.
      rules: where things are on the current mesh, when there is one.

    Raises:
      ValueError: an unknown backend.
    """
    if current_mesh() is not None:
        from qwen3_jax.expert_parallel import expert_parallel

        return expert_parallel(x, params, config, backend, rules)
    tokens = x.reshape(-1, x.shape[-1])
    routing = route(tokens, params["router"], config.num_experts_per_tok, config.norm_topk_prob)
    execution = choose_execution(backend, tokens.shape[0], config)
    with jax.named_scope("experts"):
        if execution == "reference":
            mixed = _reference(tokens, params, routing)
        elif execution == "gather":
            mixed = _gather(tokens, params, routing)
        else:
            mixed = _grouped(tokens, params, routing, execution)
    load = expert_counts(routing.experts, config.num_experts)
    return mixed.reshape(x.shape), RouterReport(routing.logits.reshape(*x.shape[:2], -1), load)


def choose_execution(backend: str, num_tokens: int, config: ModelConfig, platform: str | None = None) -> Execution:
    """What `backend` stands for, decided when the function is traced.

      reference   every expert sees every token, weight 0 where it was not chosen; to read and to test against.
      gather      the chosen experts' weights are collected, [A, F, D], and multiplied as one batch. For few tokens.
      tiles       assignments sorted by expert, tile by tile (grouped_matmul): reads only the weights of experts that
                  were chosen, each once or nearly so, from one token (tiles of one row) to thousands.
      ragged_dot  the same over `jax.lax.ragged_dot_general`.
      grouped     tiles on CPU, ragged_dot elsewhere.
      auto        grouped, except while there are fewer assignments than experts (decoding): then tiles on TPU, where
                  they too read the weights in place and ragged_dot transposes those of all experts at every call, and
                  gather on GPU, where a loop of many small steps is slow and XLA lowers ragged_dot densely over all
                  experts (a kernel comes with expert parallelism).

    Args:
      platform: of the device; JAX's default backend when left out. Compiling ahead of time for another one names it.

    Raises:
      ValueError: an unknown backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"moe_backend must be one of {', '.join(BACKENDS)}, got {backend!r}: choose one")
    if backend in get_args(Execution):
        return cast(Execution, backend)
    platform = platform or jax.default_backend()
    if platform == "cpu":
        return "tiles"
    if backend == "auto" and num_tokens * config.num_experts_per_tok < config.num_experts:
        return "tiles" if platform == "tpu" else "gather"
    return "ragged_dot"


def expert_counts(experts: Int[Array, "*T X"], num_experts: int) -> Int[Array, " E"]:
    """How many assignments each expert got: the load whose balance training keeps.

    In:  experts [[0, 2], [2, 3]], num_experts=4
    Out: [1, 0, 2, 1]
    """
    return jnp.zeros(num_experts, jnp.int32).at[experts.reshape(-1)].add(1)


def _reference(x: Array, params: Params, routing: Routing) -> Array:
    num_tokens = x.shape[0]
    weights = jnp.zeros((num_tokens, params["router"].shape[0]), x.dtype)
    weights = weights.at[jnp.arange(num_tokens)[:, None], routing.experts].set(routing.weights)

    def add_expert(mixed: Array, expert: tuple[Array, Array, Array, Array]) -> tuple[Array, None]:
        gate, up, down, weight = expert
        inner = jax.nn.silu(x @ gate.T) * (x @ up.T)
        return mixed + (weight[:, None] * (inner @ down.T)).astype(jnp.float32), None

    experts = (params["experts_gate_proj"], params["experts_up_proj"], params["experts_down_proj"], weights.T)
    return jax.lax.scan(add_expert, jnp.zeros(x.shape, jnp.float32), experts)[0].astype(x.dtype)


def _gather(x: Array, params: Params, routing: Routing) -> Array:
    gate, up, down = (params[f"experts_{name}_proj"][routing.experts] for name in ("gate", "up", "down"))
    inner = jax.nn.silu(jnp.einsum("td,txfd->txf", x, gate)) * jnp.einsum("td,txfd->txf", x, up)
    return _mix(jnp.einsum("txf,txdf->txd", inner, down), routing)


def _grouped(x: Array, params: Params, routing: Routing, implementation: Implementation) -> Array:
    """Sorts the assignments by expert, runs each expert on its own rows, puts the rows back."""
    num_tokens, per_token = routing.experts.shape
    assigned = routing.experts.reshape(-1)
    order = jnp.argsort(assigned)
    places = jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0], dtype=order.dtype), unique_indices=True)
    sizes = expert_counts(routing.experts, params["router"].shape[0])

    def experts(rows: Array, name: str) -> Array:
        return grouped_matmul(rows, params[f"experts_{name}_proj"], sizes, implementation)

    rows = _permute(jnp.repeat(x, per_token, axis=0), order, places)
    rows = experts(jax.nn.silu(experts(rows, "gate")) * experts(rows, "up"), "down")
    return _mix(_permute(rows, places, order).reshape(num_tokens, per_token, -1), routing)


def _mix(y: Float[Array, "T X D"], routing: Routing) -> Float[Array, "T D"]:
    """The weighted sum over a token's experts, in float32."""
    weighted = (y * routing.weights[:, :, None]).astype(jnp.float32)
    return jnp.sum(weighted, axis=1).astype(y.dtype)


@jax.custom_vjp
def _permute(rows: Array, order: Array, inverse: Array) -> Array:
    """rows[order]. Its gradient is the inverse permutation: a gather, where JAX's own would be a scatter."""
    del inverse
    return rows[order]


def _permute_forward(rows: Array, order: Array, inverse: Array) -> tuple[Array, Array]:
    return rows[order], inverse


def _permute_backward(inverse: Array, cotangent: Array) -> tuple[Array, None, None]:
    return cotangent[inverse], None, None


_permute.defvjp(_permute_forward, _permute_backward)
