"""The pocket model's problems: answers, the held-out split, wordings, and what a training example asks to be learnt."""

import re

import numpy as np
import pytest

from qwen3_jax.train.pocket import prompts, tasks
from qwen3_jax.train.pocket.source import PocketSource, to_example
from qwen3_jax.train.settings import DataConfig
from qwen3_jax.train.tokenizer import NOT_SPECIAL, SPECIAL
from tests.train.pocket_fixtures import pocket_tokenizer


def problems(count: int, split: tasks.Split = "train") -> list[tasks.Problem]:
    rng = np.random.default_rng(3)
    names = list(tasks.FAMILIES)
    return [tasks.sample(rng, names[i % 2], 1 + i // 2 % tasks.MAX_STEPS, split) for i in range(count)]


def solve_from_words(family: str, text: str) -> str:
    """An evaluator of its own, that reads the English question."""
    if family == "arithmetic":
        expression = re.search(r"\d(?: ?[-+*] ?\d)+", text)
        assert expression is not None
        value, *rest = re.findall(r"\d|[-+*]", expression[0])
        total = int(value)
        for symbol, operand in zip(rest[::2], rest[1::2], strict=True):
            total = eval(f"({total}) {symbol} {operand}")
        return str(total % 10)
    ball, swaps = re.findall(r"\b[A-D]\b", text)[0], re.findall(r"\b[A-D]{2}\b", text)
    cups = {cup: cup == ball for cup in "ABCD"}
    for one, other in swaps:
        cups[one], cups[other] = cups[other], cups[one]
    return next(cup for cup, has in cups.items() if has)


def test_answers_are_right_by_an_independent_evaluator() -> None:
    for number, problem in enumerate(problems(600)):
        text = prompts.question(problem, "en", number, spaced=number % 3 == 0)
        assert solve_from_words(problem.family, text) == problem.answer, text


def test_thinking_writes_one_true_step_a_line() -> None:
    arithmetic, cups = (next(p for p in problems(60) if p.family == f and p.difficulty == 3) for f in tasks.FAMILIES)
    for line in arithmetic.thinking.split("\n"):
        left, right = line.split("=")
        assert eval(left) % 10 == int(right)
    assert arithmetic.thinking.startswith(arithmetic.start)
    assert [line.split(">")[0] for line in cups.thinking.split("\n")] == list(cups.steps)
    assert cups.thinking.endswith(cups.answer)


def test_held_out_and_training_problems_are_disjoint_whatever_the_wording() -> None:
    train = {problem.key for problem in problems(2000, "train")}
    held_out = {problem.key for problem in problems(2000, "held_out")}
    assert not train & held_out
    source = PocketSource(pocket_tokenizer(), DataConfig(), seed=0)
    rng = np.random.default_rng(0)
    for _ in range(200):
        sample = prompts.conversation(rng, source.data.tasks)
        assert sample.problem is None or sample.problem.split == "train"
    share = np.mean([tasks.arithmetic(rng, 6).split == "held_out" for _ in range(4000)])
    assert 0.08 < share < 0.12


@pytest.mark.parametrize("language", prompts.LANGUAGES)
def test_answers_are_found_in_every_language(language: str) -> None:
    for problem in problems(50):
        assert tasks.is_right(problem, prompts.answer(problem, language))
        wrong = {"arithmetic": "0123456789", "cups": "ABCD"}[problem.family].replace(problem.answer, "")[0]
        assert not tasks.is_right(problem, prompts.answer(problem, language).replace(problem.answer, wrong))
    assert not tasks.is_right(problem, "")


def test_prompts_stand_in_many_scripts_and_fit_a_row() -> None:
    text = "".join(words for lang in prompts.LANGUAGES.values() for words in (*lang.arithmetic, *lang.cups))
    for start, end in ("az", "一龥", "ぁん", "가힣", "аяё"[:2], "αω", "ءي", "अह"):
        assert any(start <= letter <= end for letter in text)
    source = PocketSource(pocket_tokenizer(), DataConfig(), seed=1)
    assert max(len(source.example(index).tokens) for index in range(500)) <= 256


def test_tokenizer_has_qwen3s_added_tokens_and_a_short_stop_text() -> None:
    tok = pocket_tokenizer()
    ids = [tok.token_to_id(name) for name in (*SPECIAL, *NOT_SPECIAL)]
    assert ids == list(range(tok.vocab_size - 26, tok.vocab_size))
    assert tok.decode([tok.token_to_id("<think>"), ids[1]], skip_special_tokens=True) == "<think>"
    assert len(tok.encode(prompts.STOP_THINKING_TEXT)) <= 24
    assert len(tok.encode("12")) == 2
    text = "7+5=2\n从左到右 e\u0301 नमस्ते 🙂"
    assert tok.decode(tok.encode(text)) == text.replace("e\u0301", "é")


def conversation(mode: prompts.Mode, *messages: tuple[str, str]) -> prompts.Conversation:
    turns = tuple({"role": role, "content": content} for role, content in messages)
    return prompts.Conversation(messages=turns, mode=mode, thinking="7+5=2", content="The answer is 2.", problem=None)


def test_loss_is_on_the_last_assistant_turn_and_on_nothing_else() -> None:
    tok = pocket_tokenizer()
    history = (("user", "7+5 = ? /no_think"), ("assistant", "The answer is 2."), ("user", "7+5 = ?"))
    expected = {
        "think": "<think>\n7+5=2\n</think>\n\nThe answer is 2.<|im_end|>",
        "no_think": "<think>\n\n</think>\n\nThe answer is 2.<|im_end|>",
        "hard": "The answer is 2.<|im_end|>",
    }
    for mode, text in expected.items():
        sample = conversation(mode, *history)
        example = to_example(tok, sample)
        learnt = [token for token, counts in zip(example.tokens, example.loss, strict=True) if counts]
        assert tok.decode(learnt) == text
        prompt = tok.render(list(sample.messages), enable_thinking=mode != "hard")
        assert tok.decode(example.tokens) == prompt + text


def test_cut_thinking_skips_the_stop_text_in_the_loss() -> None:
    tok = pocket_tokenizer()
    sample = conversation("think", ("user", "7+5 = ?"))
    for cut, kept in ((0.0, "<think>\n"), (0.5, "<think>\n7+5"), (0.999, "<think>\n7+5=2")):
        example = to_example(tok, sample, cut)
        learnt = [token for token, counts in zip(example.tokens, example.loss, strict=True) if counts]
        assert tok.decode(learnt) == f"{kept}The answer is 2.<|im_end|>"
        text = f"{kept}{prompts.STOP_THINKING_TEXT}The answer is 2.<|im_end|>"
        assert tok.decode(example.tokens).endswith(text)


def test_the_last_flag_decides() -> None:
    rng = np.random.default_rng(5)
    mixture = prompts.TaskMixture(multi_turn=0.7, system=0.3)
    modes = set()
    for _ in range(2000):
        sample = prompts.conversation(rng, mixture)
        flags = re.findall(r"/(?:no_)?think", " ".join(message["content"] for message in sample.messages))
        if sample.mode == "hard":
            continue
        assert (flags[-1:] == ["/no_think"]) == (sample.mode == "no_think"), sample.messages
        modes.add((sample.mode, bool(flags), len(sample.messages) > 2))
    assert len(modes) >= 5


def test_examples_depend_on_seed_and_index_alone() -> None:
    source = PocketSource(pocket_tokenizer(), DataConfig(), seed=1)
    ahead = [source.example(index) for index in range(20)]
    assert [source.example(index) for index in reversed(range(20))] == ahead[::-1]
    assert PocketSource(pocket_tokenizer(), DataConfig(), seed=2).example(0) != ahead[0]


def test_curriculum_starts_with_short_chains() -> None:
    source = PocketSource(pocket_tokenizer(), DataConfig(curriculum_examples=1000), seed=1)
    longest = [source.mixture(index).max_steps for index in (0, 250, 500, 999, 1000, 5000)]
    assert longest == [2, 4, 7, 12, 12, 12]


def test_wrong_family_or_difficulty_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="'chess'"):
        tasks.sample(rng, "chess", 1, "train")
    with pytest.raises(ValueError, match="got 13"):
        tasks.sample(rng, "cups", 13, "train")
