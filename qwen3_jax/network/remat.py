"""What a layer keeps for its backward pass and what it computes again.

  none       everything is kept.
  dots       the results of products with weights are kept (those of experts are not: they are loops or kernels, with
             `num_experts_per_tok` rows a token); norms, rope, scores and activations are computed again.
  attention  of these only what attention's own products give, which are narrow; the MLP or the experts run again.
  full       nothing is kept but the layer's input: one more forward pass.

From none to full memory falls and work grows; on CPU with layers in the "stacked" layout only (see
`qwen3_jax/kernels/cpu/recompute.py`).
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

Remat = Literal["none", "dots", "attention", "full"]


def keep(name: Literal["attention"], x: Array) -> Array:
    """`x`, under the name by which a policy keeps it."""
    kept: Array = checkpoint_name(x, name)
    return kept


def checkpointed(layer: Callable[..., Any], remat: str, prevent_cse: bool) -> Callable[..., Any]:
    """`layer`, a function of arrays, whose backward pass computes again what `remat` does not keep.

    Args:
      prevent_cse: needed outside of a scan, where the compiler would join the two computations.

    Raises:
      ValueError: an unknown policy.
    """
    if remat not in get_args(Remat):
        raise ValueError(f"remat must be one of {', '.join(get_args(Remat))}, got {remat!r}: choose one")
    if remat == "none":
        return layer
    policies = jax.checkpoint_policies
    policy = {
        "dots": policies.dots_with_no_batch_dims_saveable,
        "attention": policies.save_only_these_names("attention"),
        "full": None,
    }[remat]
    wrapped: Callable[..., Any] = jax.checkpoint(layer, prevent_cse=prevent_cse, policy=policy)
    return wrapped
