"""How good the pocket model is: accuracy in each mode, obedience to flags, and the thinking-budget curve.

    python -m qwen3_jax.train.pocket.evaluate qwen3_jax/pocket --out docs/results

Every problem is held out (by hash, see `tasks`), in a random language and phrasing; decoding is greedy unless
--temperature says otherwise. Answers come from `infer.generate`, the loop that serves.
"""

import argparse
import dataclasses
import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_jax.checkpoints.load import from_pretrained
from qwen3_jax.infer.config import GenerationConfig
from qwen3_jax.infer.generate import generate
from qwen3_jax.infer.results import Result
from qwen3_jax.text.tokenizer import load_tokenizer
from qwen3_jax.train.pocket import prompts, tasks

BUDGETS = (0, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 72, 80)
MAX_NEW_TOKENS = 160
CONVERSATIONS = prompts.TaskMixture(multi_turn=0.5, system=0.2, small_talk=0.0, thinking=0.4, hard=0.2)
Ask = Callable[[Sequence[Any], Sequence[GenerationConfig]], list[Result]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A held-out problem as one user's words."""

    problem: tasks.Problem
    text: str

    def messages(self, flag: str = "") -> list[prompts.Message]:
        return [{"role": "user", "content": f"{self.text} {flag}".strip()}]


def held_out_questions(count: int, seed: int) -> list[Question]:
    """`count` different problems, families and difficulties in even shares as far as there are enough of them.

    A tenth of all problems is held out, so of the 24 one-step problems with cups only two or three are.
    """
    rng = np.random.default_rng((seed, 2))
    names, seen, questions = list(tasks.FAMILIES), set[str](), []
    for index in range(count):
        family, steps = names[index % len(names)], 1 + index // len(names) % tasks.MAX_STEPS
        problem = _unseen(rng, family, steps, seen)
        seen.add(problem.key)
        questions.append(Question(problem=problem, text=prompts.random_question(rng, problem)[0]))
    return questions


def _unseen(rng: np.random.Generator, family: str, steps: int, seen: set[str]) -> tasks.Problem:
    """A held-out problem not in `seen`, with more steps where those of `steps` are used up."""
    while True:
        for _ in range(200):
            problem = tasks.sample(rng, family, steps, "held_out")
            if problem.key not in seen:
                return problem
        steps += 1


def asker(directory: Path, dtype: str, batch: int) -> Ask:
    """Loads a model and answers conversations, `batch` at a time."""
    model, params = from_pretrained(directory, dtype=dtype)
    tok = load_tokenizer(directory)

    def ask(conversations: Sequence[Any], configs: Sequence[GenerationConfig]) -> list[Result]:
        results: list[Result] = []
        for begin in range(0, len(conversations), batch):
            part = slice(begin, begin + batch)
            results += generate(model, params, tok, list(conversations[part]), list(configs[part]))
        return results

    return ask


def accuracy_by_mode(ask: Ask, questions: Sequence[Question], base: GenerationConfig) -> dict[str, Any]:
    """Accuracy with thinking (no flag), with /no_think, and with the hard switch; by family and number of steps."""
    modes = {
        "thinking": ("", base),
        "no_think flag": ("/no_think", base),
        "hard switch": ("", dataclasses.replace(base, enable_thinking=False)),
    }
    out = {}
    for mode, (flag, config) in modes.items():
        results = ask([question.messages(flag) for question in questions], [config] * len(questions))
        right = [tasks.is_right(q.problem, r.content) for q, r in zip(questions, results, strict=True)]
        grouped: dict[str, dict[int, list[bool]]] = defaultdict(lambda: defaultdict(list))
        for question, good in zip(questions, right, strict=True):
            grouped[question.problem.family][question.problem.difficulty].append(good)
        out[mode] = {
            "accuracy": share(right),
            "thinking_tokens": float(np.mean([result.thinking_tokens for result in results])),
            "families": {
                family: {
                    "accuracy": share([good for rows in by_steps.values() for good in rows]),
                    "by_steps": {str(steps): share(by_steps[steps]) for steps in sorted(by_steps)},
                }
                for family, by_steps in grouped.items()
            },
        }
    return out


def obedience(
    ask: Ask, count: int, seed: int, base: GenerationConfig, mixture: prompts.TaskMixture = CONVERSATIONS
) -> dict[str, Any]:
    """Share of conversations in which the model thinks exactly when the last flag (or the hard switch) says so."""
    rng = np.random.default_rng((seed, 3))
    samples = [prompts.conversation(rng, mixture, "held_out") for _ in range(count)]
    configs = [dataclasses.replace(base, enable_thinking=sample.mode != "hard") for sample in samples]
    results = ask([list(sample.messages) for sample in samples], configs)
    obeyed: dict[str, list[bool]] = defaultdict(list)
    right: dict[str, list[bool]] = defaultdict(list)
    for sample, result in zip(samples, results, strict=True):
        turns = "several turns" if len(sample.messages) > 2 else "one turn"
        obeyed[f"{sample.mode}, {turns}"].append(bool(result.thinking) == (sample.mode == "think"))
        if sample.problem is not None:
            right[sample.mode].append(tasks.is_right(sample.problem, result.content))
    return {
        "conversations": count,
        "obeyed": share([good for rows in obeyed.values() for good in rows]),
        "by_kind": {kind: share(rows) for kind, rows in sorted(obeyed.items())},
        "accuracy": {mode: share(rows) for mode, rows in sorted(right.items())},
    }


def budget_curve(
    ask: Ask, questions: Sequence[Question], budgets: Sequence[int | None], base: GenerationConfig
) -> list[dict[str, Any]]:
    """Accuracy of the same questions at each budget; None is unlimited."""
    curve = []
    for budget in budgets:
        config = dataclasses.replace(base, thinking_budget=budget)
        results = ask([question.messages() for question in questions], [config] * len(questions))
        right: dict[str, list[bool]] = defaultdict(list)
        for question, result in zip(questions, results, strict=True):
            assert budget is None or result.thinking_tokens <= budget
            good = tasks.is_right(question.problem, result.content)
            right["all"].append(good)
            right[question.problem.family].append(good)
        curve.append(
            {
                "budget": budget,
                "accuracy": share(right["all"]),
                "families": {family: share(right[family]) for family in tasks.FAMILIES},
                "thinking_tokens": float(np.mean([result.thinking_tokens for result in results])),
                "exhausted": share([result.budget_exhausted for result in results]),
            }
        )
        print(f"budget {budget}: {curve[-1]['accuracy']:.3f}", flush=True)
    return curve


def share(values: Sequence[bool]) -> float:
    return round(float(np.mean(values)), 4)


def evaluate(directory: Path, problems: int, seed: int, dtype: str, batch: int, temperature: float) -> dict[str, Any]:
    """Every measure of one model."""
    start = time.perf_counter()
    ask = asker(directory, dtype, batch)
    questions = held_out_questions(problems, seed)
    base = GenerationConfig(temperature=temperature, max_new_tokens=MAX_NEW_TOKENS, seed=seed)
    measures: dict[str, Any] = {
        "model": directory.as_posix(),
        "problems": problems,
        "seed": seed,
        "dtype": dtype,
        "temperature": temperature,
        "modes": accuracy_by_mode(ask, questions, base),
        "flags": obedience(ask, problems, seed, base),
        "budgets": budget_curve(ask, questions, (*BUDGETS, None), base),
    }
    measures["seconds"] = round(time.perf_counter() - start, 1)
    return measures


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m qwen3_jax.train.pocket.evaluate", description=__doc__.splitlines()[0]
    )
    parser.add_argument("model", type=Path, help="directory of the model, in Hugging Face form")
    parser.add_argument("--out", type=Path, required=True, help="where pocket.json, pocket.md and the plot go")
    parser.add_argument("--problems", type=int, default=1200, help="held-out problems a point")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--temperature", type=float, default=0.0)
    args = parser.parse_args(argv)
    measures = evaluate(args.model, args.problems, args.seed, args.dtype, args.batch, args.temperature)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "pocket.json").write_text(json.dumps(measures, indent=2) + "\n", encoding="utf-8")
    from qwen3_jax.train.pocket.report import write_report  # matplotlib is a development dependency

    write_report(measures, args.out)
    print(f"wrote pocket.json, pocket.md and pocket-budget.png in {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
