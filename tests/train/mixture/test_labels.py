"""Combinations of labels: counted, held against a target, and the same after a turn through a configuration."""

import io

import pytest
from rich.console import Console

from qwen3_jax.train.mixture.labels import (
    as_weights,
    combination,
    count_tokens,
    share_rows,
    share_table,
    shares_of,
    target_shares,
)
from qwen3_jax.train.settings import WeightConfig

BY = ("language", "domain")
DOCUMENTS = [
    ({"language": "en", "domain": "math"}, 30),
    ({"language": "zh", "domain": "math", "quality": "clean"}, 50),
    ({"language": "en", "domain": "math"}, 10),
    ({"domain": "code"}, 10),
]


def test_tokens_are_counted_by_combination() -> None:
    counts = count_tokens(DOCUMENTS, BY)
    assert counts == {("", "code"): 10, ("en", "math"): 40, ("zh", "math"): 50}
    assert shares_of(counts) == {("", "code"): 0.1, ("en", "math"): 0.4, ("zh", "math"): 0.5}
    assert combination({"domain": "math"}, ("domain", "quality")) == ("math", "")
    with pytest.raises(ValueError, match="there must be tokens"):
        shares_of({})


def test_weights_of_a_configuration_and_shares_are_the_same() -> None:
    shares = {("en", "math"): 0.25, ("zh", "math"): 0.75}
    written = [WeightConfig(**entry) for entry in as_weights(BY, shares)]
    assert target_shares(BY, written) == shares
    assert written[0].labels == {"language": "zh", "domain": "math"}
    with pytest.raises(ValueError, match="of the labels"):
        target_shares(("domain",), written)
    with pytest.raises(ValueError, match="at least 0"):
        target_shares(("domain",), [WeightConfig(labels={"domain": "math"}, weight=-1.0)])


def test_the_report_holds_tokens_against_the_target() -> None:
    rows = share_rows(count_tokens(DOCUMENTS, BY), {("en", "math"): 0.5, ("es", "math"): 0.5})
    assert [(row.values, row.tokens, row.share, row.target) for row in rows] == [
        (("zh", "math"), 50, 0.5, 0.0),
        (("en", "math"), 40, 0.4, 0.5),
        (("", "code"), 10, 0.1, 0.0),
        (("es", "math"), 0, 0.0, 0.5),
    ]
    out = io.StringIO()
    Console(file=out, width=100).print(share_table(BY, rows))
    english = next(line for line in out.getvalue().splitlines() if " en " in line)
    assert [cell.strip() for cell in english.split("│")[1:-1]] == ["en", "math", "40", "40.00%", "50.00%", "-10.00"]
    assert "(none)" in out.getvalue()
