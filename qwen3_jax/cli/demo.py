"""`qwen3-jax demo`: the main job on the embedded pocket model, in under a minute."""

import argparse
import shlex
import time
from typing import Any

from qwen3_jax.cli.arguments import Parser, UsageError, whole_number

BUDGETS = (0, 8, 16, 32, 64, None)
CUT = 16  # the budget of the answer that is cut short
_SEED = 0  # of the problems
_KEPT = ("thinking", "content", "thinking_tokens", "budget_exhausted")  # of each result
_EPILOG = """\
The problems are of the kinds the model was trained on, but held out from its training, in all its languages. Everything
is greedy, so the numbers are the same at every run on the same machine.
"""


def parser() -> Parser:
    result = Parser("demo", "Both modes and the thinking budget, on the embedded pocket model.", _EPILOG, json=True)
    result.add_argument(
        "--problems", type=whole_number, default=64, metavar="N", help="problems at each budget of the table (64)"
    )
    result.add_argument("--model", metavar="PATH", help="another model trained on the pocket tasks")
    result.set_defaults(dtype="float32", adapter=None)
    return result


def run(args: argparse.Namespace) -> int:
    """One problem answered in three ways, then accuracy against budget."""
    if not 1 <= args.problems <= 4096:
        raise UsageError(f"--problems must be from 1 to 4096, got {args.problems}: 64 take a few seconds")
    from qwen3_jax.cli.common import load, open_model, print_json
    from qwen3_jax.parameters.specs import num_parameters

    began = time.perf_counter()
    opened = open_model(args)
    model, params, _ = load(opened)
    demo = Demo(model, params, opened.tok, options=["--model", args.model] if args.model else [], quiet=args.json)
    demo.say(f"{opened.name} ({num_parameters(model.config):,} parameters, {opened.directory})\n")
    answers = demo.answers()
    curve = demo.curve(args.problems)
    seconds = round(time.perf_counter() - began, 1)
    demo.say(f"\n{seconds} s in all. Next: qwen3-jax chat")
    if args.json:
        print_json({"answers": answers, "curve": curve, "seconds": seconds})
    return 0


class Demo:
    """The two parts of the demonstration, printed as they are made unless `quiet`."""

    def __init__(self, model: Any, params: Any, tok: Any, *, options: list[str], quiet: bool) -> None:
        from rich.console import Console

        self._loaded = (model, params, tok)
        self._options = options
        self._quiet = quiet
        self._console = Console(highlight=False)

    def say(self, text: str, style: str | None = None) -> None:
        if not self._quiet:
            self._console.print(text, style=style, markup=False, soft_wrap=True)

    def answers(self) -> list[dict[str, Any]]:
        """One problem, thinking, not thinking and cut short; what came of each."""
        import numpy as np

        from qwen3_jax.train.pocket import prompts, tasks

        problem = tasks.sample(np.random.default_rng(_SEED), "arithmetic", 8, "held_out")
        question = prompts.question(problem, "en", 0)
        modes: dict[str, tuple[list[str], dict[str, Any]]] = {
            "thinking": ([], {}),
            "not thinking": (["--no-thinking"], {"enable_thinking": False}),
            f"at most {CUT} tokens of thinking": (["--thinking-budget", str(CUT)], {"thinking_budget": CUT}),
        }
        found = []
        for mode, (flags, settings) in modes.items():
            words = ["qwen3-jax", "generate", *self._options, "--prompt", question, "--temperature", "0", *flags]
            self.say(f"$ {shlex.join(words)}", style="bold")
            result = self._answer(question, settings)
            right = tasks.is_right(problem, result.content)
            verdict = "right" if right else f"wrong, it is {problem.answer}"
            self.say(f"({mode}: {verdict}; {result.thinking_tokens} tokens of thinking)\n", style="dim")
            found.append(
                {
                    "mode": mode,
                    "question": question,
                    "answer": problem.answer,
                    "right": right,
                    **{name: getattr(result, name) for name in _KEPT},
                }
            )
        return found

    def curve(self, problems: int) -> list[dict[str, Any]]:
        """Share of right answers at each budget; the same held-out problems at each."""
        from qwen3_jax import infer
        from qwen3_jax.train.pocket import tasks
        from qwen3_jax.train.pocket.evaluate import MAX_NEW_TOKENS, held_out_questions

        questions = held_out_questions(problems, _SEED)
        inputs = [question.messages() for question in questions]
        self.say(
            f"thinking budget   right   ({problems} held-out problems of 1 to {tasks.MAX_STEPS} steps)", style="bold"
        )
        curve = []
        for budget in BUDGETS:
            config = infer.GenerationConfig(temperature=0, thinking_budget=budget, max_new_tokens=MAX_NEW_TOKENS)
            results = infer.generate(*self._loaded, inputs, config)
            right = sum(tasks.is_right(q.problem, r.content) for q, r in zip(questions, results, strict=True))
            thought = round(sum(result.thinking_tokens for result in results) / problems, 1)
            label = "no limit" if budget is None else str(budget)
            bar = "█" * round(30 * right / problems)
            self.say(f"{label:>15} {right / problems:>7.0%}   {bar:<30}  {thought:.0f} tokens of thinking each")
            curve.append({"budget": budget, "problems": problems, "right": right, "thinking_tokens": thought})
        return curve

    def _answer(self, question: str, settings: dict[str, Any]) -> Any:
        from qwen3_jax import infer
        from qwen3_jax.cli.answers import AnswerWriter
        from qwen3_jax.train.pocket.evaluate import MAX_NEW_TOKENS

        config = infer.GenerationConfig(temperature=0, max_new_tokens=MAX_NEW_TOKENS, **settings)
        writer = None if self._quiet else AnswerWriter(show_thinking=True)
        result = None
        for piece in infer.stream(*self._loaded, [[{"role": "user", "content": question}]], config):
            if writer:
                writer.push(piece)
            result = piece.result
        if writer:
            writer.close()
        return result
