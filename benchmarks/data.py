"""How fast data is made ready, on one core, against what training the pocket model consumes on two.

    python -m benchmarks.data                  # prints the result
    python -m benchmarks.data --write          # and writes docs/results/data.md

Texts and conversations are made of the pocket tasks (no corpus is shipped that would be large enough), with the pocket
tokenizer: byte-level BPE as Qwen3's, but with 880 tokens, so that a text has about three times Qwen3's tokens a
character, and each takes as much work in packing. The files lie on disk; each pipeline runs in a process of its own
that is bound to one core, indexes made before; the best of some rounds counts.
"""

import argparse
import itertools
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, ROOT, cpu_name, made_by, table

LENGTHS = {"on the fly": 512, "with a mixture": 512, "chat": 512, "made ahead": 512, "pocket tasks": 216}
GOAL = 10


def write_corpus(directory: Path, texts: int = 6000, chats: int = 3000) -> None:
    """Texts of 1 to 40 problems with their solutions, and conversations of one to three turns."""
    from qwen3_jax.train.pocket import prompts

    rng, mixture = np.random.default_rng(0), prompts.TaskMixture()
    samples = [prompts.conversation(rng, mixture) for _ in range(4000)]
    with (directory / "text.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(texts):
            some = [samples[i] for i in rng.integers(len(samples), size=int(np.exp(rng.uniform(0, 3.7))))]
            text = "\n".join(f"{one.messages[-1]['content']}\n{one.thinking}\n{one.content}\n" for one in some)
            file.write(json.dumps({"text": text, "language": "xyz"[rng.integers(3)]}, ensure_ascii=False) + "\n")
    with (directory / "chat.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(chats):
            messages: list[dict[str, Any]] = []
            for i in rng.integers(len(samples), size=int(rng.integers(1, 4))):
                one = samples[i]
                said = {"role": "assistant", "content": one.content, "reasoning_content": one.thinking}
                messages += [one.messages[-1], said]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def settings(name: str, directory: Path) -> dict[str, Any]:
    """The data section of one pipeline."""
    sources = {
        "chat": [{"path": str(directory / "chat.jsonl"), "kind": "chat"}],
        "made ahead": [{"path": str(directory / "tokens"), "kind": "tokens"}],
        "pocket tasks": [],
    }
    data: dict[str, Any] = {"rows": 16, "length": LENGTHS[name], "cache": str(directory / "cache"), "threads": 0}
    data["sources"] = sources.get(name, [{"path": str(directory / "text.jsonl")}])
    if name == "with a mixture":
        shares = (("x", 5), ("y", 3), ("z", 2))
        weights = [{"labels": {"language": name}, "weight": weight} for name, weight in shares]
        data["mixture"] = {"by": ["language"], "weights": weights}
    return data


def measure(name: str, directory: Path, seconds: float) -> dict[str, float]:
    """Tokens a second and the share of rows that stays empty, on one core."""
    from qwen3_jax.paths import pocket_path
    from qwen3_jax.text.tokenizer import load_tokenizer
    from qwen3_jax.train.config import TrainConfig
    from qwen3_jax.train.data import make_data
    from qwen3_jax.train.parsing import parse

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
    config = parse(TrainConfig, {"data": settings(name, directory)})
    stream = make_data(config, load_tokenizer(pocket_path())).batches([0])
    next(stream)
    best, tokens_in_all, room = 0.0, 0, 0
    for _ in range(4):
        began, tokens = time.process_time(), 0
        while (spent := time.process_time() - began) < seconds / 4:
            batch = next(stream)[0].place(None)
            tokens += int((batch.segment_ids > 0).sum())
            room += batch.tokens.size
        tokens_in_all += tokens
        best = max(best, tokens / spent)
    return {"tokens_per_second": best, "waste": 1 - tokens_in_all / room}


def grain_packing(directory: Path) -> dict[str, float]:
    """Waste of Grain's own packing over the same documents, with as many rows open as a batch has."""
    import grain

    from qwen3_jax.paths import pocket_path
    from qwen3_jax.text.tokenizer import load_tokenizer
    from qwen3_jax.train.config import TrainConfig
    from qwen3_jax.train.data import make_data
    from qwen3_jax.train.parsing import parse

    config = parse(TrainConfig, {"data": settings("on the fly", directory)})
    data, length = make_data(config, load_tokenizer(pocket_path())), LENGTHS["on the fly"]
    order = data.mixture.cells[0].members
    pieces = [piece.tokens for place in range(3000) for piece in data.documents.pieces(order[place])]
    wastes = {}
    for kind in (grain.experimental.FirstFitPackIterDataset, grain.experimental.BestFitPackIterDataset):
        source = grain.MapDataset.source([{"tokens": np.asarray(piece)} for piece in pieces]).to_iter_dataset()
        packed = kind(source, length_struct={"tokens": length}, num_packing_bins=16, shuffle_bins=False)
        rows = [np.asarray(row["tokens_segment_ids"]) for row in itertools.islice(packed, 800)]
        wastes[kind.__name__] = float(1 - np.mean([(row > 0).mean() for row in rows]))
    return wastes


def training_rate(steps: int) -> float:
    """Tokens a second of configs/train/pocket.yaml: the best of its steps after compilation on this machine, and of the
    run that made the pocket model where that is more (other work on this machine must not lower the goal)."""
    recorded = (RESULTS / "pocket-training" / "metrics.jsonl").read_text().splitlines()
    with tempfile.TemporaryDirectory() as run_dir:
        words = ["-m", "qwen3_jax.cli", "train", "configs/train/pocket.yaml", f"run_dir={run_dir}", f"steps={steps}"]
        more = ["optimizer.warmup_steps=2", "data.curriculum_examples=0"]
        subprocess.run([sys.executable, *words, *more], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        lines = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    return float(max(line["tokens_per_second"] for line in [*lines[2:], *map(json.loads, recorded)]))


def apart(directory: Path, *words: str) -> dict[str, float]:
    """Runs one measurement in a process of its own."""
    program = [sys.executable, "-m", "benchmarks.data", "--directory", str(directory), *words]
    out = subprocess.run(program, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    result: dict[str, float] = json.loads(out.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=re.split(r"\n\n", __doc__ or "")[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="of processor time for each pipeline")
    parser.add_argument("--steps", type=int, default=12, help="training steps that are measured")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one = grain_packing(args.directory) if args.one == "grain" else measure(args.one, args.directory, args.seconds)
        print(json.dumps(one))
        return
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_corpus(directory)
        words = ["-m", "qwen3_jax.cli", "tokenize", str(directory / "text.jsonl"), "--tokenizer", "qwen3_jax/pocket"]
        more = ["--output", str(directory / "tokens"), "--label", "language"]
        subprocess.run(
            [sys.executable, *words, *more],
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "XDG_CACHE_HOME": str(directory)},
        )
        found = {kind: apart(directory, "--seconds", str(args.seconds), "--one", kind) for kind in LENGTHS}
        packing = apart(directory, "--one", "grain")
    text = report(found, packing, training_rate(args.steps))
    print(text)
    if args.write:
        (RESULTS / "data.md").write_text(text + made_by("benchmarks.data") + "\n", encoding="utf-8")


def report(found: dict[str, dict[str, float]], packing: dict[str, float], consumed: float) -> str:
    rows = []
    for name, one in found.items():
        times, waste = one["tokens_per_second"] / consumed, one["waste"]
        goal = f"{times:.0f} ({'reached' if times >= GOAL else 'missed'})"
        rows.append(
            [name, f"{one['tokens_per_second']:,.0f}", goal, f"{waste:.2%} ({'reached' if waste < 0.02 else 'missed'})"]
        )
    titles = [
        "pipeline",
        "tokens per second of one core",
        f"times what training consumes, goal {GOAL}",
        "waste, goal under 2%",
    ]
    others = ", ".join(f"{name} {waste:.1%}" for name, waste in packing.items())
    names = ", ".join(f"{name} {version(name)}" for name in ("grain", "tokenizers", "numpy", "jax"))
    return (
        "# The data pipeline\n\n"
        f"Training the pocket model (`configs/train/pocket.yaml`) consumes {consumed:,.0f} tokens per second "
        "on 2 cores at best. The pipelines run alone, on one core, without threads that read ahead; "
        "tokens are counted per second of processor time, since other work on the machine only ever takes from it.\n\n"
        f"{chr(10).join(table(titles, rows))}\n\n"
        "Texts are JSONL, on the fly: parsed, tokenised, packed. `made ahead`: `qwen3-jax tokenize` before. "
        "`pocket tasks` makes up each conversation, renders it and tokenises it.\n\n"
        f"**Grain's own packing** wastes, with as many rows open as the batch has (16): {others}. "
        f"Ours looks two batches ahead (`data.lookahead`): {found['on the fly']['waste']:.2%}.\n\n"
        f"{cpu_name()}, {os.cpu_count()} cores; Python {platform.python_version()}, {names}. "
        f"Load average at the end: {os.getloadavg()[0]:.1f}.\n"
    )


if __name__ == "__main__":
    main()
