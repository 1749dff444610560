"""The mixture of experts: one router, several executions of the experts that agree.

Every token goes through its `num_experts_per_tok` best experts; no token is dropped and no expert has a capacity.
Dimensions: T tokens, X experts per token, A = T * X assignments, E experts, D model, F feed-forward of one expert.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from qwen3_jax.config import ModelConfig
from qwen3_jax.experts.execution import BACKENDS as BACKENDS
from qwen3_jax.experts.execution import choose_execution as choose_execution
from qwen3_jax.experts.grouped import GroupedBackend, grouped_swiglu, weighted_swiglu
from qwen3_jax.experts.parallel import expert_parallel
from qwen3_jax.experts.router import RouterReport as RouterReport
from qwen3_jax.experts.router import Routing as Routing
from qwen3_jax.experts.router import expert_counts as expert_counts
from qwen3_jax.experts.router import route as route
from qwen3_jax.experts.router import row_sums as row_sums
from qwen3_jax.experts.sorting import permute, sort_assignments, sum_experts
from qwen3_jax.parameters.specs import Params
from qwen3_jax.sharding import DEFAULT_RULES, Rules, current_mesh


def moe(
    x: Float[Array, "B T D"],
    params: Params,
    config: ModelConfig,
    backend: str = "auto",
    rules: Rules = DEFAULT_RULES,
    counted: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], RouterReport]:
    """Routes each token and mixes what its experts make of it.

    Args:
      x: normed activations.
      params: `router` [E, D], `experts_gate_proj` and `experts_up_proj` [E, F, D], `experts_down_proj` [E, D, F].
      config: `num_experts_per_tok` and `norm_topk_prob` of it.
      backend: how the experts run, see `choose_execution`.
      rules: where things are on the current mesh, when there is one.
      counted: the tokens whose choices the report counts, by rows too; None: all of them, and no rows.

    Raises:
      ValueError: an unknown backend.
    """
    if current_mesh() is not None:
        return expert_parallel(x, params, config, backend, rules, counted=counted)
    tokens = x.reshape(-1, x.shape[-1])
    routing = route(tokens, params["router"], config.num_experts_per_tok, config.norm_topk_prob)
    execution = choose_execution(backend)
    with jax.named_scope("experts"):
        if execution == "reference":
            mixed = _reference(tokens, params, routing)
        elif execution == "gather":
            mixed = _gather(tokens, params, routing)
        else:
            mixed = _grouped(tokens, params, routing, execution)
    rows = None if counted is None else row_sums(routing, counted)
    load = expert_counts(routing.experts, config.num_experts) if rows is None else jnp.sum(rows.assignments, axis=0)
    return mixed.reshape(x.shape), RouterReport(routing.logits.reshape(*x.shape[:2], -1), load, rows)


def _reference(x: Array, params: Params, routing: Routing) -> Array:
    num_tokens = x.shape[0]
    weights = jnp.zeros((num_tokens, params["router"].shape[0]), x.dtype)
    weights = weights.at[jnp.arange(num_tokens)[:, None], routing.experts].set(routing.weights)

    def add_expert(mixed: Array, expert: tuple[Array, Array, Array, Array]) -> tuple[Array, None]:
        gate, up, down, weight = expert
        inner = weighted_swiglu(x @ gate.T, x @ up.T, weight[:, None])
        return mixed + (inner @ down.T).astype(jnp.float32), None

    experts = (params["experts_gate_proj"], params["experts_up_proj"], params["experts_down_proj"], weights.T)
    return jax.lax.scan(add_expert, jnp.zeros(x.shape, jnp.float32), experts)[0].astype(x.dtype)


def _gather(x: Array, params: Params, routing: Routing) -> Array:
    gate, up, down = (params[f"experts_{name}_proj"][routing.experts] for name in ("gate", "up", "down"))
    gated, raised = (jnp.einsum("td,txfd->txf", x, w) for w in (gate, up))
    inner = weighted_swiglu(gated, raised, routing.weights[:, :, None])
    return sum_experts(jnp.einsum("txf,txdf->txd", inner, down)).astype(x.dtype)


def _grouped(x: Array, params: Params, routing: Routing, implementation: GroupedBackend) -> Array:
    """Sorts the assignments by expert, runs each expert on its own rows, puts the rows back."""
    num_tokens, per_token = routing.experts.shape
    order, places = sort_assignments(routing.experts)
    sizes = expert_counts(routing.experts, params["router"].shape[0])
    gate, up, down = (params[f"experts_{name}_proj"] for name in ("gate", "up", "down"))
    rows = permute(jnp.repeat(x, per_token, axis=0), order, places)
    weights = permute(routing.weights.reshape(-1, 1), order, places)
    rows = grouped_swiglu(rows, gate, up, down, weights, sizes, implementation)
    return sum_experts(permute(rows, places, order).reshape(num_tokens, per_token, -1)).astype(x.dtype)
