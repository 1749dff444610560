"""Combinations of labels: counted, held against a target, shown.

A mixture is a share for each combination of the values of some labels ("by"), whatever file an example comes from.
"""

import collections
import dataclasses
import functools
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from qwen3_jax.train.settings import WeightConfig

UNKNOWN = "und"  # ISO 639-2 for undetermined
MIN_CONFIDENCE = 0.2  # half of the mistakes on short, odd texts become "und"


class Language:
    """Label `language`: an ISO 639 code, or "und" where no language has a fifth of the probability."""

    name = "language"
    labels = ("language",)

    def __init__(self, codes: str = "") -> None:
        """Args:
          codes: the only languages to choose from, "en,zh"; "": all that the model knows.

        Raises:
          ValueError: a code that the model does not know, or py3langid is not installed.
        """
        chosen = tuple(code.strip() for code in codes.split(",") if code.strip())
        self._identifier = _identifier(chosen)

    def annotate(self, record: Mapping[str, Any]) -> dict[str, str]:
        code, _ = self._identifier.classify(record["text"])
        return {"language": code}


@functools.cache
def _identifier(codes: tuple[str, ...]) -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise ValueError("annotator language needs py3langid: pip install 'qwen3-jax[language]'") from None
    made = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=MIN_CONFIDENCE)
    if codes:
        if unknown := sorted(set(codes) - set(made.labels)):
            raise ValueError(f"annotator language must be given ISO 639 codes it knows, got {unknown[0]!r}: correct it")
        made.set_languages(codes)
    return made


Labels = Mapping[str, str]
Combination = tuple[str, ...]  # one value for each label of `by`, "" where an example lacks it


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShareRow:
    """One combination.

    Attributes:
      values: of the labels that make it.
      tokens: counted.
      share: of all tokens counted.
      target: the share it is to have; None where there is no target.
    """

    values: Combination
    tokens: int
    share: float
    target: float | None = None


def combination(labels: Labels, by: Sequence[str]) -> Combination:
    """In: {"language": "en", "domain": "math"}, ("domain", "quality")      Out: ("math", "")"""
    return tuple(labels.get(name, "") for name in by)


def count_tokens(documents: Iterable[tuple[Labels, int]], by: Sequence[str]) -> dict[Combination, int]:
    """Tokens of each combination, from (labels, tokens) of each document."""
    counts: collections.Counter[Combination] = collections.Counter()
    for labels, tokens in documents:
        counts[combination(labels, by)] += tokens
    return dict(sorted(counts.items()))


def by_value(counts: Mapping[str, int]) -> dict[Combination, int]:
    """Counts by the values of one label, as counts by combination. In: {"en": 3}      Out: {("en",): 3}"""
    return {(value,): count for value, count in counts.items()}


def shares_of(counts: Mapping[Combination, float]) -> dict[Combination, float]:
    """The same, divided by their sum.

    Raises:
      ValueError: the sum is not positive.
    """
    total = sum(counts.values())
    if not total > 0:
        raise ValueError(f"there must be tokens to share, got {total}: check the sources")
    return {values: tokens / total for values, tokens in counts.items()}


def target_shares(by: Sequence[str], weights: Sequence[WeightConfig]) -> dict[Combination, float]:
    """The shares that weights of a configuration ask for.

    Raises:
      ValueError: a weight of other labels than `by`, or below 0, or all are 0.
    """
    asked: dict[Combination, float] = {}
    for entry in weights:
        if set(entry.labels) != set(by) or entry.weight < 0:
            raise ValueError(
                f"a weight must be at least 0 and of the labels {list(by)}, got {entry.weight} of "
                f"{dict(entry.labels)}: correct it"
            )
        asked[combination(entry.labels, by)] = asked.get(combination(entry.labels, by), 0.0) + entry.weight
    return shares_of(asked)


def as_weights(by: Sequence[str], shares: Mapping[Combination, float]) -> list[dict[str, Any]]:
    """Shares as `data.mixture.weights` of a configuration, the largest first; the inverse of `target_shares`."""
    return [
        {"labels": dict(zip(by, values, strict=True)), "weight": round(float(share), 6)}
        for values, share in sorted(shares.items(), key=lambda item: -item[1])
    ]


def share_rows(
    counts: Mapping[Combination, int], target: Mapping[Combination, float] | None = None
) -> tuple[ShareRow, ...]:
    """One row for each combination that has tokens or a target, most tokens first."""
    total = max(sum(counts.values()), 1)
    rows = [
        ShareRow(
            values=values,
            tokens=counts.get(values, 0),
            share=counts.get(values, 0) / total,
            target=None if target is None else target.get(values, 0.0),
        )
        for values in {**counts, **(target or {})}
    ]
    return tuple(sorted(rows, key=lambda row: (-row.tokens, row.values)))


def share_table(
    by: Sequence[str],
    rows: Sequence[ShareRow],
    title: str = "",
    unit: str = "tokens",
    further: Mapping[str, Mapping[Combination, int]] = types.MappingProxyType({}),
) -> Table:
    """For a terminal: combination, tokens, share, and where there is a target the share asked for and the difference.

    Args:
      unit: what was counted.
      further: other counts, each a column of its own.
    """
    aimed = any(row.target is not None for row in rows)
    table = Table(title=title or None, title_justify="left")
    for name in by:
        table.add_column(name)
    for name in (unit, "share", *(("target", "off by") if aimed else ()), *further):
        table.add_column(name, justify="right")
    for row in rows:
        cells = [value or "(none)" for value in row.values] + [f"{row.tokens:,}", f"{row.share:.2%}"]
        if aimed:
            target = row.target or 0.0
            cells += [f"{target:.2%}", f"{100 * (row.share - target):+.2f}"]
        table.add_row(*cells, *(f"{counts.get(row.values, 0):,}" for counts in further.values()))
    return table
