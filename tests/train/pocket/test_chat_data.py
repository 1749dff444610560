"""The pocket world as files, and the fine-tuning recipes that read them."""

import json

import numpy as np
import pytest

from qwen3_jax.train.config import load_config
from qwen3_jax.train.fusion import last_flag
from qwen3_jax.train.pocket import prompts, tasks
from qwen3_jax.train.pocket.chat_data import chat_records, main, text_records
from tests.support import REPO

MIXTURE = prompts.TaskMixture(families=("cups",), max_steps=3, thinking=0.4, multi_turn=0.5)


def test_conversations_have_no_flags_and_the_shares_asked_for() -> None:
    records = list(chat_records(MIXTURE, 600, 0))
    answers = [message for one in records for message in one["messages"] if message["role"] == "assistant"]
    assert not any(last_flag(one["messages"]) for one in records)
    assert abs(np.mean(["reasoning_content" in answer for answer in answers]) - 0.4) < 0.05
    assert abs(np.mean([len(one["messages"]) > 2 for one in records]) - 0.5) < 0.06
    assert {len(one["messages"]) for one in records} == {2, 4, 6}
    assert records[:5] == list(chat_records(MIXTURE, 5, 0))
    assert records[:5] != list(chat_records(MIXTURE, 5, 1))


def test_thinking_and_answer_belong_to_the_question(tmp_path) -> None:
    path = tmp_path / "new" / "chat.jsonl"
    assert main([str(path), "--examples", "200", "--families", "cups", "--max-steps", "3", "--thinking", "1"]) == 0
    assert [file.name for file in path.parent.iterdir()] == ["chat.jsonl"]
    for line in path.read_text(encoding="utf-8").splitlines():
        question, answer = json.loads(line)["messages"][-2:]
        steps = answer["reasoning_content"].split("\n")
        assert all(step.split(">")[0] in question["content"] for step in steps)
        assert steps[-1].split(">")[1] in answer["content"]


def test_text_holds_the_problem_and_nothing_held_out() -> None:
    for record in text_records(prompts.TaskMixture(families=("arithmetic",), max_steps=2), 100, 0):
        question, *steps, answer = record["text"].strip("\n").split("\n")
        assert question
        assert steps[-1][-1] in answer
        left = [step.split("=")[0] for step in steps]
        states = tuple(step[-1] for step in steps)
        ours = {"start": left[0][0], "steps": tuple(one[1:] for one in left), "states": states}
        problem = tasks.Problem(family="arithmetic", **ours)
        assert problem.split == "train"


@pytest.mark.parametrize("name", ["sft", "lora", "continue"])
def test_recipes_are_read(name) -> None:
    config = load_config(REPO / "configs" / "train" / f"{name}.yaml", ["init_from=somewhere"])
    assert config.data.sources
    assert (config.lora is not None) == (name == "lora")
    assert (config.data.sources[0].fusion is not None) == (name != "continue")
