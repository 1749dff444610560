"""What several test files need."""

import os
from pathlib import Path

from beartype import BeartypeConf, beartype

# What checks signatures under pytest (`--jaxtyping-packages` in pyproject.toml). An int passes for a float,
# as in the type system and in a config.json.
typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True))

REPO = Path(__file__).resolve().parent.parent


def shared_dir() -> Path | None:
    """The directory of data shared beside the checkout (official tokenizer and configs), or None where it is absent.

    `QWEN3_JAX_SHARED` names it; without it, `shared/` inside the checkout or beside it.
    """
    named = os.environ.get("QWEN3_JAX_SHARED")
    for candidate in [Path(named)] if named else [REPO / "shared", REPO.parent / "shared"]:
        if (candidate / "qwen3").is_dir():
            return candidate
    return None
