"""How problems are worded: several scripts, several phrasings, and the conversations around them.

A training sample has the shapes of Qwen3's report (arXiv 2505.09388, section 4.3 and table 9):

    mode          what decides                    the model writes
    thinking      /think last, or no flag         <think>\\n7+5=2\\n</think>\\n\\nThe answer is 2.<|im_end|>
    soft switch   /no_think last                  <think>\\n\\n</think>\\n\\nThe answer is 2.<|im_end|>
    hard switch   empty block in the prompt       The answer is 2.<|im_end|>
    cut thinking  as thinking, but at a random token the stop-thinking text follows, then the answer
"""

import dataclasses
from typing import Any

import numpy as np

from qwen3_jax.infer import STOP_THINKING_TEXT as STOP_THINKING_TEXT
from qwen3_jax.train.fusion import Mode as Mode
from qwen3_jax.train.fusion import append_flag, append_or_prepend, draw_flag, draw_place, earlier_flags
from qwen3_jax.train.pocket import tasks
from qwen3_jax.train.pocket.words import LANGUAGES as LANGUAGES
from qwen3_jax.train.pocket.words import SMALL_TALK
from qwen3_jax.train.settings import TaskMixture

Message = dict[str, Any]


SYSTEM = ("You are a pocket model.", "Be brief.")


def question(problem: tasks.Problem, language: str, phrasing: int, spaced: bool = False) -> str:
    """The problem in words; `spaced` writes "7 + 5" for "7+5"."""
    words = LANGUAGES[language]
    if problem.family == "cups":
        return words.cups[phrasing % len(words.cups)].format(b=problem.start, s=" ".join(problem.steps))
    steps = [f" {step[0]} {step[1]}" if spaced else step for step in problem.steps]
    return words.arithmetic[phrasing % len(words.arithmetic)].format(e=problem.start + "".join(steps))


def answer(problem: tasks.Problem, language: str) -> str:
    return LANGUAGES[language].answer.format(a=problem.answer)


def random_question(rng: np.random.Generator, problem: tasks.Problem, spaced_share: float = 0.2) -> tuple[str, str]:
    """The problem in a random language and phrasing, and its answer in the same language."""
    names = list(LANGUAGES)
    language = "en" if rng.random() < 0.2 else names[rng.integers(len(names))]
    spaced = bool(rng.random() < spaced_share)
    return question(problem, language, int(rng.integers(6)), spaced), answer(problem, language)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversation:
    """One sample before it is tokens.

    Attributes:
      messages: the prompt, ending with a user message.
      mode: what the last flag, or the hard switch, asks for.
      thinking: the text between `<think>\\n` and `\\n</think>`; what the model writes when the mode is "think".
      content: the answer.
      problem: the last question's problem; None for small talk.
    """

    messages: tuple[Message, ...]
    mode: Mode
    thinking: str
    content: str
    problem: tasks.Problem | None


def conversation(rng: np.random.Generator, mixture: TaskMixture, split: tasks.Split = "train") -> Conversation:
    """Draws one conversation."""
    talk = rng.random() < mixture.small_talk
    problem = None
    if talk:
        text, thinking, content = SMALL_TALK[rng.integers(len(SMALL_TALK))]
    else:
        problem = random_problem(rng, mixture, mixture.max_steps, split)
        text, content = random_question(rng, problem)
        thinking = problem.thinking
    draw = rng.random()
    mode: Mode = (
        "think" if draw < mixture.thinking else "hard" if draw < mixture.thinking + mixture.hard else "no_think"
    )
    turns = int(rng.integers(1, 3)) if rng.random() < mixture.multi_turn else 0
    flag = draw_flag(rng, mode, mixture.flagged)
    choices, place = earlier_flags(mode, flag), draw_place(rng, flag, turns)
    messages: list[Message] = []
    if place == "system" or rng.random() < mixture.system:
        words = SYSTEM[rng.integers(len(SYSTEM))] if rng.random() < 0.5 or place != "system" else ""
        messages.append({"role": "system", "content": append_flag(words, flag) if place == "system" else words})
    for turn in range(turns):
        past = random_problem(rng, mixture, min(3, mixture.max_steps), split)
        past_text, past_content = random_question(rng, past, spaced_share=0.0)
        past_flag = choices[rng.integers(len(choices))]
        if place == "earlier" and turn == turns - 1:
            past_flag = flag
        messages.append({"role": "user", "content": append_flag(past_text, past_flag)})
        messages.append({"role": "assistant", "content": past_content})
    if place == "last":
        text = append_or_prepend(rng, text, flag)
    messages.append({"role": "user", "content": text})
    return Conversation(messages=tuple(messages), mode=mode, thinking=thinking, content=content, problem=problem)


def random_problem(rng: np.random.Generator, mixture: TaskMixture, max_steps: int, split: tasks.Split) -> tasks.Problem:
    family = mixture.families[rng.integers(len(mixture.families))]
    return tasks.sample(rng, family, int(rng.integers(min(mixture.min_steps, max_steps), max_steps + 1)), split)
