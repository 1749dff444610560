"""What a run has read: tokens by label combination and by label, against the target."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from qwen3_jax.train.data.mixture import Mixture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """Attributes:
    labels: what the line is about ({} is everything).
    tokens: packed so far.
    share: of all tokens.
    target: the share it is to have; None: nothing sets it.
    epochs: times that its documents were drawn; None for what is not drawn as one.
    """

    labels: Mapping[str, str]
    tokens: int
    share: float
    target: float | None = None
    epochs: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureReport:
    """Attributes:
    weights: a line for each weight of the mixture (empty where there is none).
    combinations: a line for each label combination.
    labels: a line for each value of each label.
    dropped: examples left out because they are longer than a row.
    malformed: records left out because they are, as far as they were read since this start.
    """

    weights: tuple[Line, ...]
    combinations: tuple[Line, ...]
    labels: tuple[Line, ...]
    dropped: int
    malformed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """A table, e.g. for the end of a run.

        In:  two languages at 0.7 and 0.3
        Out: language=de              700 tokens  70.00% (target 70.00%)  1.40 epochs
        """
        lines = [*self.weights, *self.labels]
        names = [" ".join(f"{name}={value}" for name, value in line.labels.items()) for line in lines]
        width = max(map(len, names), default=0)
        text = []
        for name, line in zip(names, lines, strict=True):
            said = f"{name:<{width}} {line.tokens:>14,} tokens {line.share:8.2%}"
            said += f" (target {line.target:.2%})" if line.target is not None else ""
            text.append(said + (f" {line.epochs:6.2f} epochs" if line.epochs is not None else ""))
        if self.dropped:
            text.append(f"{self.dropped} examples left out: longer than a row")
        if self.malformed:
            text.append(f"{self.malformed} malformed records left out")
        return "\n".join(text)


def make_report(
    names: Sequence[str],
    combinations: Sequence[Sequence[str]],
    mixture: Mixture,
    places: Iterable[Mapping[str, Any]],
    malformed: int = 0,
) -> MixtureReport:
    """The report of the streams at `places`.

    Args:
      names: of the labels.
      combinations: their values.
      malformed: records left out.
    """
    places = list(places)
    tokens = np.zeros(len(combinations), np.int64)
    for place in places:
        tokens[: len(place["tokens"])] += np.array(place["tokens"], np.int64)
    total = max(int(tokens.sum()), 1)
    weighted = any(cell.labels for cell in mixture.cells)
    drawn: list[int] = max((place["order"].get("drawn", []) for place in places), key=sum, default=[])
    if not drawn:  # one cell, of which each stream counts its own part
        drawn = [sum(place["order"]["next_index"] for place in places)]
    own = [dict(zip(names, combination, strict=True)) for combination in combinations]
    cell_of = np.array(mixture.cell_of)

    def line(which: np.ndarray, labels: Mapping[str, str], **more: Any) -> Line:
        got = int(tokens[which].sum())
        return Line(labels=labels, tokens=got, share=got / total, **more)

    def target(which: np.ndarray) -> float | None:
        """Where every cell lies in these combinations or outside of them."""
        inside, outside = set(cell_of[which].tolist()) - {-1}, set(cell_of[~which].tolist()) - {-1}
        if not weighted or inside & outside:
            return None
        return float(sum(mixture.cells[cell].weight for cell in inside))

    weights = [
        line(
            cell_of == number,
            cell.labels,
            target=cell.weight,
            epochs=drawn[number] / cell.members.count if drawn else None,
        )
        for number, cell in enumerate(mixture.cells)
        if weighted
    ]
    every = np.arange(len(combinations))
    values = sorted({(name, labels[name]) for labels in own for name in names})
    per_value = [(np.array([labels[name] == value for labels in own]), {name: value}) for name, value in values]
    return MixtureReport(
        weights=tuple(weights),
        combinations=tuple(line(every == i, labels, target=target(every == i)) for i, labels in enumerate(own)),
        labels=tuple(line(which, labels, target=target(which)) for which, labels in per_value),
        dropped=sum(place["dropped"] for place in places),
        malformed=malformed,
    )
