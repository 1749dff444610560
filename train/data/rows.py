"""Which pieces of documents share a row."""

import bisect
from collections.abc import Sequence

import numpy as np


def best_fit(sizes: Sequence[int], ages: Sequence[int], rows: int, length: int) -> list[list[int]]:
    """Which of the pool's pieces go into which row: older ones before younger, then longest first, each into the
    fullest row that has room for it.

    In:  sizes [3, 5, 2, 4], ages [1, 0, 0, 0], 2 rows of 7
    Out: [[0, 3], [1, 2]]

    Args:
      sizes: tokens of each piece of the pool, in order of arrival; at most `length`.
      ages: batches that each has waited.
    """
    packed: list[list[int]] = [[] for _ in range(rows)]
    room = np.full(rows, length)
    smallest = min(sizes, default=0)
    for place in sorted(range(len(sizes)), key=lambda i: (-ages[i], -sizes[i])):
        if sizes[place] > (most := int(room.max())):
            continue
        if most < smallest:
            break
        row = int(np.where(room >= sizes[place], room, length + 1).argmin())
        packed[row].append(place)
        room[row] -= sizes[place]
    return packed


def tighten(
    packed: list[list[int]], sizes: Sequence[int], ages: Sequence[int], length: int, oldest: int
) -> list[list[int]]:
    """Swaps pieces for longer ones that found no room, where a row then has less left; not those of age `oldest`.

    In:  rows [[0, 2]] of 9, sizes [4, 6, 3], ages [0, 0, 0]: 2 tokens are left
    Out: [[1, 2]]
    """
    placed = {place for row in packed for place in row}
    spare = sorted((size, place) for place, size in enumerate(sizes) if place not in placed)
    tight = []
    for row in packed:
        left = length - sum(sizes[place] for place in row)
        row = list(row)
        for at in range(len(row) - 1, -1, -1):  # the shortest first: most of the spare ones are longer
            size = sizes[row[at]]
            found = bisect.bisect_right(spare, (size + left, len(sizes))) - 1
            if left and ages[row[at]] < oldest and found >= 0 and spare[found][0] > size:
                longer, place = spare.pop(found)
                bisect.insort(spare, (size, row[at]))
                row[at], left = place, left - (longer - size)
        tight.append(row)
    return tight
