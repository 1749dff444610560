"""How rows sorted by group are cut into tiles that hold rows of one group each."""

import jax.numpy as jnp
from jaxtyping import Array, Int


def tile_table(
    group_sizes: Int[Array, " E"], rows: int, tile: int
) -> tuple[Int[Array, " M"], Int[Array, " M"], Int[Array, " M"], Int[Array, ""]]:
    """Group, first row and end row (of its group) of every tile, and how many tiles there are; M bounds that number.

    In:  group_sizes [3, 0, 1], tile=2
    Out: groups [0, 0, 2], starts [0, 2, 3], ends [3, 3, 4], count 3
    """
    occupied = min(rows, group_sizes.shape[0])
    bound = (rows + occupied * (tile - 1)) // tile
    group_ends = jnp.cumsum(group_sizes)
    tiles = -(-group_sizes // tile)
    tile_ends = jnp.cumsum(tiles)
    index = jnp.arange(bound, dtype=group_sizes.dtype)
    groups = jnp.searchsorted(tile_ends, index, side="right", method="compare_all")
    groups = jnp.minimum(groups, group_sizes.shape[0] - 1).astype(group_sizes.dtype)
    ordinal = index - (tile_ends - tiles)[groups]
    starts = (group_ends - group_sizes)[groups] + ordinal * tile
    return groups, starts, group_ends[groups], tile_ends[-1]
