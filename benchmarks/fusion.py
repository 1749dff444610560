"""Does thinking-mode fusion teach flags? Obedience and accuracy of models before and after it, on held-out problems.

    python -m benchmarks.fusion "thinking only=runs/thinking/model" "fused=runs/sft/model" \\
        "fused, LoRA=runs/thinking/model+runs/lora/adapter" --out docs/results/fusion.md

configs/train/sft.yaml says how the models are made. Decoding is greedy; a model obeys where it thinks exactly when the
last flag, or the hard switch, says so.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import qwen3_jax
from benchmarks.common import table
from qwen3_jax.infer.config import GenerationConfig
from qwen3_jax.train.pocket import prompts
from qwen3_jax.train.pocket.evaluate import asker, obedience

KINDS = {"think": "thinking", "no_think": "/no_think", "hard": "hard switch"}
TURNS = ("one turn", "several turns")


def measure(where: str, args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Of the model in a directory; DIRECTORY+ADAPTER merges adapters first."""
    directory, _, adapter = where.partition("+")
    if adapter:
        from qwen3_jax.checkpoints.convert import convert

        convert(directory, scratch, adapter=adapter)
        directory = str(scratch)
    mixture = prompts.TaskMixture(
        families=tuple(args.families),
        max_steps=args.max_steps,
        multi_turn=0.5,
        system=0.2,
        small_talk=0.0,
        thinking=0.4,
    )
    ask = asker(Path(directory), "float32", args.batch)
    base = GenerationConfig(temperature=0.0, max_new_tokens=args.max_new_tokens, seed=args.seed)
    return obedience(ask, args.conversations, args.seed, base, mixture)


def report(measures: dict[str, dict[str, Any]], args: argparse.Namespace) -> str:
    """The page."""
    obeyed = [
        [name, f"{100 * one['obeyed']:.1f}%"]
        + [f"{100 * one['by_kind'][f'{kind}, {turns}']:.1f}%" for kind in KINDS for turns in TURNS]
        for name, one in measures.items()
    ]
    right = [[name, *(f"{100 * one['accuracy'][kind]:.1f}%" for kind in KINDS)] for name, one in measures.items()]
    header = ["model", "all", *(f"{name}, {turns}" for name in KINDS.values() for turns in TURNS)]
    return "\n".join(
        [
            "# Thinking-mode fusion at small scale",
            "",
            "    python -m benchmarks.fusion \\",
            "        " + " ".join(f'"{model}"' for model in args.models),
            "",
            f"{args.conversations} conversations about held-out problems ({', '.join(args.families)}, up to "
            f"{args.max_steps} steps), half of them of",
            "several turns, flags in user and system messages; greedy decoding. How the models are made:",
            "`configs/train/sft.yaml`, `configs/train/lora.yaml`.",
            "",
            "**Obedience**: the model thinks exactly when the last flag, or the hard switch, says so.",
            "",
            *table(header, obeyed),
            "",
            "**Accuracy** of the answers in the same conversations:",
            "",
            *table(["model", *KINDS.values()], right),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="NAME=DIRECTORY[+ADAPTER]")
    parser.add_argument("--families", nargs="+", default=["cups"])
    parser.add_argument("--max-steps", type=int, default=3)
    parser.add_argument("--conversations", type=int, default=400)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    qwen3_jax.enable_compile_cache()

    measures = {}
    for model in args.models:
        name, _, where = model.partition("=")
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            measures[name] = measure(where, args, Path(scratch) / "merged")
        print(name, measures[name], f"{time.perf_counter() - began:.0f} s", flush=True)
    text = report(measures, args)
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
