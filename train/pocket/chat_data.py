"""The pocket world as files: conversations with and without thinking, as chat data comes, or plain text.

    python -m qwen3_jax.train.pocket.chat_data runs/chat.jsonl --examples 6000 --families cups --max-steps 3

The conversations have no flags: `data.sources.fusion` draws them. Held-out problems are in none of the files.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_jax.files import written_beside
from qwen3_jax.train.pocket import prompts, tasks

MAX_EARLIER = 2  # turns before the last one


def chat_records(mixture: prompts.TaskMixture, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """{"messages": [...], "domain": family}: each answer has `reasoning_content` or not, by `mixture.thinking`; of a
    share `mixture.multi_turn` there are one or two turns before the last."""
    for index in range(count):
        rng = np.random.default_rng((seed, 5, index))
        turns = int(rng.integers(1, MAX_EARLIER + 1)) if rng.random() < mixture.multi_turn else 0
        messages: list[dict[str, str]] = []
        for _ in range(turns + 1):
            problem = prompts.random_problem(rng, mixture, mixture.max_steps, "train")
            text, content = prompts.random_question(rng, problem)
            answer = {"role": "assistant", "content": content}
            if rng.random() < mixture.thinking:
                answer["reasoning_content"] = problem.thinking
            messages += [{"role": "user", "content": text}, answer]
        yield {"messages": messages, "domain": problem.family}


def text_records(mixture: prompts.TaskMixture, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """{"text": problem, one step a line, answer; "domain": family}: what there is to read about the tasks."""
    for index in range(count):
        rng = np.random.default_rng((seed, 6, index))
        problem = prompts.random_problem(rng, mixture, mixture.max_steps, "train")
        text, content = prompts.random_question(rng, problem)
        yield {"text": f"{text}\n{problem.thinking}\n{content}\n", "domain": problem.family}


def write(path: Path, records: Iterator[dict[str, Any]]) -> int:
    """Writes JSON lines beside `path` and renames; returns how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with written_beside(path) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m qwen3_jax.train.pocket.chat_data", description=__doc__.splitlines()[0]
    )
    parser.add_argument("out", type=Path, help="the .jsonl file to write")
    parser.add_argument("--kind", choices=("chat", "text"), default="chat")
    parser.add_argument("--examples", type=int, default=6000)
    parser.add_argument("--families", nargs="+", choices=tuple(tasks.FAMILIES), default=tuple(tasks.FAMILIES))
    parser.add_argument("--max-steps", type=int, default=tasks.MAX_STEPS)
    parser.add_argument("--thinking", type=float, default=0.5, help="share of the answers with thinking")
    parser.add_argument("--multi-turn", type=float, default=0.3, help="share of the conversations of several turns")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    mixture = prompts.TaskMixture(
        families=tuple(args.families), max_steps=args.max_steps, thinking=args.thinking, multi_turn=args.multi_turn
    )
    make = chat_records if args.kind == "chat" else text_records
    print(f"wrote {write(args.out, make(mixture, args.examples, args.seed))} examples to {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
