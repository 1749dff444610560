"""A tiny study on disk."""

from pathlib import Path
from typing import Any

import yaml

from tests.train.pocket_fixtures import MODEL

BASE: dict[str, Any] = {
    "steps": 40,
    "model": MODEL,
    "tokenizer": {"vocab_size": 760, "corpus_size": 400},
    "data": {"rows": 2, "length": 256},
    "optimizer": {"warmup_steps": 1},
    "evaluation": {"batches": 1},
    "checkpoint_every": 4,
}
STUDY: dict[str, Any] = {
    "title": "A tiny study",
    "base": "base.yaml",
    "grid": {
        "qk_norm": {"with": {}, "without": {"ablation.qk_norm": False}},
        "optimizer.learning_rate": [0.01, 0.1],
    },
    "baseline": {"qk_norm": "with"},
    "seeds": [0, 1, 2],
    "metrics": ["held_out_loss", "domain_loss"],
    "paper": {"says": "With it, training is stable.", "source": "2505.09388"},
    "claims": [
        {
            "says": "better with it",
            "metric": "held_out_loss",
            "less": {"qk_norm": "with", "optimizer.learning_rate": 0.1},
            "more": {"qk_norm": "without", "optimizer.learning_rate": 0.1},
        }
    ],
}


def write_study(directory: Path, **changes: Any) -> Path:
    """The file of the study, with its base beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "base.yaml").write_text(yaml.safe_dump(BASE), encoding="utf-8")
    path = directory / "tiny.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False), encoding="utf-8")
    return path
