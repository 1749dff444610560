"""One process of a job: loads, answers, trains, saves. `python worker.py JOB.json PROCESS_ID`.

The job: {"coordinator", "num_processes", "mesh", "checkpoint", "out", "train"}; process 0 writes out/result.json.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # started by its path, from anywhere

import jax
import numpy as np

from qwen3_jax.checkpoints.adapters import load_adapters, save_adapters
from qwen3_jax.checkpoints.load import from_pretrained, save_pretrained
from qwen3_jax.infer import GenerationConfig, generate
from qwen3_jax.sharding import parse_mesh
from qwen3_jax.sharding.launch.distributed import start
from qwen3_jax.sharding.launch.processes import gather, is_first
from qwen3_jax.text.tokenizer import load_tokenizer
from qwen3_jax.train.config import TrainConfig
from qwen3_jax.train.data import Example, endless_data
from qwen3_jax.train.loop import train
from qwen3_jax.train.parsing import parse

PROMPTS = ["What is 3", "user hi assistant <think>\n"]
GREEDY = GenerationConfig(temperature=0.0, max_new_tokens=48)
CONFIGS = [GREEDY, dataclasses.replace(GREEDY, thinking_budget=5, stop_thinking_text="Stop.\n</think>\n\n")]


@dataclasses.dataclass(frozen=True)
class Words:
    """Example i: a run of tokens that follow one another, of a length between 4 and 20; counts what is asked for."""

    vocabulary: int
    asked: list[int] = dataclasses.field(default_factory=list)

    def pieces(self, index: int) -> list[Example]:
        self.asked.append(index)
        rng = np.random.default_rng(index)
        size, first = 4 + int(rng.integers(16)), int(rng.integers(self.vocabulary))
        tokens = [(first + at) % self.vocabulary for at in range(size)]
        return [Example(tokens=tokens, loss=[False] + [True] * (size - 1))]

    def name(self, index: int) -> str:
        return f"words:{index}"


def answers(checkpoint: Path, mesh: Any, again: Path) -> list[dict[str, Any]]:
    """Greedy answers with a budget; also writes anew the parameters, and the adapters beside the checkpoint."""
    model, params = from_pretrained(checkpoint, dtype="float32", mesh=mesh, layout="stacked")
    tok = load_tokenizer(checkpoint)
    results = generate(model, params, tok, PROMPTS, CONFIGS)
    save_pretrained(again, model, params, tokenizer=tok)
    save_adapters(again.with_name("adapters-again"), *load_adapters(checkpoint.with_name("adapters"), model, params))
    return [dataclasses.asdict(result) for result in results]


def trained(settings: dict[str, Any], directory: Path) -> int:
    """Trains and saves the model; returns how many examples this process made."""
    config = parse(TrainConfig, settings)
    source = Words(config.model["vocab_size"])
    model, state = train(config, endless_data(config, source))
    save_pretrained(directory, model, state.params)
    return len(source.asked)


def main(job: dict[str, Any], process_id: int) -> None:
    start(job["coordinator"], job["num_processes"], process_id, timeout=60)
    assert jax.process_count() == job["num_processes"]
    out = Path(job["out"])
    mesh = parse_mesh(job["mesh"]).build()
    results = answers(Path(job["checkpoint"]), mesh, out / "again")
    made = gather(trained(job["train"], out / "trained"))
    if is_first():
        (out / "result.json").write_text(json.dumps({"answers": results, "examples": made}), encoding="utf-8")


if __name__ == "__main__":
    os.environ["QWEN3_JAX_COMPILATION_CACHE_DIR"] = "off"
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), int(sys.argv[2]))
