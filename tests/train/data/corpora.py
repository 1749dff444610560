"""Small corpora in every kind of file, and a configuration that reads them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_jax.train.config import TrainConfig
from qwen3_jax.train.parsing import parse

WORDS = "the ball is under which cup now swap left right what mod answer 7 5 3 wo ist der Ball 球在哪 где шарик".split()
LANGUAGES, DOMAINS = ("de", "en", "zh"), ("book", "web")


def records(count: int, seed: int = 0, longest: int = 40) -> list[dict[str, Any]]:
    """Texts of 1 to `longest` words with a language and a domain; languages have different sizes and lengths."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        language = int(rng.choice(3, p=[0.2, 0.7, 0.1]))
        size = 1 + int(rng.integers(longest)) // (1 + language)
        text = " ".join([str(number), *rng.choice(WORDS, size)])
        made.append({"text": text, "language": LANGUAGES[language], "domain": DOMAINS[int(rng.integers(2))]})
    return made


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def config(tmp_path: Path, *paths: Path, **data: Any) -> TrainConfig:
    sources = data.pop("sources", [{"path": str(path)} for path in paths])
    values = {"rows": 4, "length": 128, "threads": 0, "cache": str(tmp_path / "cache"), "sources": sources, **data}
    return parse(TrainConfig, {"seed": 3, "data": values})
