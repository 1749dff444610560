"""Conversations: what is learnt is exactly what the assistant said, after exactly the prompt that inference renders."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3_jax.paths import pocket_path
from qwen3_jax.text.tokenizer import Tokenizer, load_tokenizer
from qwen3_jax.train.data import make_data
from qwen3_jax.train.data.chat_loss_mask import chat_parts, encode_parts
from tests import support
from tests.train.data.corpora import config, write_jsonl

PIECES = (
    "hello",
    "7+5",
    "\n",
    "\n\n",
    " ",
    "न",
    "漢字",
    "🙂",
    "<b>",
    "a\n\nb",
    "/think",
    "/no_think",
    '"',
    "\t",
    "answer",
)


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    """The official tokenizer and template where they are at hand, else the pocket model's, which renders the same."""
    shared = support.shared_dir()
    return load_tokenizer(pocket_path() if shared is None else shared / "qwen3" / "tokenizer")


def text(rng: np.random.Generator, least: int = 1) -> str:
    """Words that neither begin nor end in line breaks, which the template strips."""
    return "".join(rng.choice(PIECES, int(rng.integers(least, 6)))).strip("\n")


def conversation(rng: np.random.Generator, thinking: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """One to four questions, each with steps that call tools and an answer; and what the assistant says each time."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": text(rng)}] if rng.random() < 0.4 else []
    said = []

    def assistant(calls: list[dict[str, Any]]) -> None:
        content, thought = text(rng, least=0), text(rng) if thinking and rng.random() < 0.7 else ""
        block = f"<think>\n{thought}\n</think>\n\n"
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if thought and rng.random() < 0.5:
            message["content"] = block + content
        elif thought:
            message["reasoning_content"] = thought
        if calls:
            message["tool_calls"] = [{"type": "function", "function": call} for call in calls]
        texts = [f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in calls]
        said.append(block + "\n".join([content, *texts] if content else texts) + "<|im_end|>")
        messages.append(message)

    for _ in range(int(rng.integers(1, 5))):
        messages.append({"role": "user", "content": text(rng)})
        for _ in range(int(rng.integers(0, 3))):
            calls = [{"name": f"f{i}", "arguments": {"x": text(rng)}} for i in range(int(rng.integers(1, 3)))]
            assistant(calls)
            messages += [{"role": "tool", "content": text(rng)} for _ in calls]
        assistant([])
    return messages, said


def spans(tok: Tokenizer, parts: Any) -> list[tuple[str, bool]]:
    """Runs of the loss mask, decoded."""
    tokens, loss = encode_parts(tok, parts)
    edges = [0, *(np.flatnonzero(np.diff(loss.astype(int))) + 1).tolist(), len(tokens)]
    return [(tok.decode(tokens[a:b].tolist()), bool(loss[a])) for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("thinking", [True, False])
def test_each_turn_is_learnt_after_the_prompt_of_inference(tok: Tokenizer, thinking: bool) -> None:
    for seed in range(25):
        messages, said = conversation(np.random.default_rng((seed, thinking)), thinking)
        examples = chat_parts(tok, messages, end="<|im_end|>")
        turns = [k for k, message in enumerate(messages) if message["role"] == "assistant"]
        assert len(examples) == len(turns) == len(said)
        for parts, turn, words in zip(examples, turns, said, strict=True):
            prompt = tok.render(messages[:turn], add_generation_prompt=True)
            assert spans(tok, parts) == [(prompt, False), (words, True)]


def test_kept_thinking_stands_in_one_example(tok: Tokenizer) -> None:
    """All that was said, and between it what a single rendering has there: nothing of it is stripped."""
    for seed in range(15):
        messages, said = conversation(np.random.default_rng((seed, 2)), True)
        (parts,) = chat_parts(tok, messages, end="<|im_end|>", thinking="keep")
        found = spans(tok, parts)
        assert [words for words, learnt in found if learnt] == said
        others = "".join(words for words, learnt in found if not learnt)
        silent = [
            {"role": "assistant", "content": "§"} if message["role"] == "assistant" else message for message in messages
        ]
        rendered = tok.render(silent, add_generation_prompt=False).replace("<think>\n\n</think>\n\n§", "§")
        assert others == rendered.replace("§<|im_end|>", "").removesuffix("\n")


def test_both_modes_and_weights(tok: Tokenizer) -> None:
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "1", "weight": 0},
        {"role": "user", "content": "two /no_think"},
        {"role": "assistant", "content": "2"},
    ]
    (parts,) = chat_parts(tok, messages, end="<|im_end|>")  # the first turn is not learnt
    assert spans(tok, parts)[1] == ("<think>\n\n</think>\n\n2<|im_end|>", True)
    (hard,) = chat_parts(tok, messages, end="<|im_end|>", enable_thinking=False)  # the block stands in the prompt
    prompt, answer = spans(tok, hard)
    assert prompt[0].endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert answer == ("2<|im_end|>", True)
    (kept,) = chat_parts(tok, messages, end="<|im_end|>", thinking="keep")
    assert [words for words, learnt in spans(tok, kept) if learnt] == ["<think>\n\n</think>\n\n2<|im_end|>"]
    assert "<think>\n\n</think>\n\n1<|im_end|>" in spans(tok, kept)[0][0]
    for wrong, options in (
        ([*messages[:2], {"role": "assistant", "content": "again"}], {}),
        ([messages[0], {"role": "assistant", "content": "1", "reasoning_content": "hm"}], {"enable_thinking": False}),
    ):
        with pytest.raises(ValueError, match="must continue the prompt as the chat template renders it"):
            chat_parts(tok, wrong, end="<|im_end|>", **options)


def test_chat_files_to_batches(tmp_path: Path) -> None:
    """Turns become documents; one that is too long for a row is left out, counted and named."""
    tok = load_tokenizer(pocket_path())
    rows = []
    for seed in range(30):
        messages, _ = conversation(np.random.default_rng((seed, 3)), True)
        rows.append({"messages": messages, "domain": "chat", "tools": None if seed % 2 else []})
    path = write_jsonl(tmp_path / "chat.jsonl", [{k: v for k, v in row.items() if v is not None} for row in rows])
    settings = config(tmp_path, sources=[{"path": str(path), "kind": "chat"}], length=128)
    data = make_data(settings, tok)
    stream = data.batches([0])
    with pytest.warns(UserWarning, match=r"chat\.jsonl:\d+ is left out: \d+ tokens do not fit in data\.length=128 \(1"):
        made = [next(stream) for _ in range(6)]
    learnt = set()
    for share, _ in made:
        batch = share.parts[0]
        for row in range(4):
            for segment in range(1, batch.segment_ids[row].max() + 1):
                at = (batch.segment_ids[row] == segment) & batch.loss_mask[row]
                learnt.add(tok.decode(batch.targets[row][at].tolist()))
    expected = {words for seed in range(30) for words in conversation(np.random.default_rng((seed, 3)), True)[1]}
    assert len(learnt) > 20
    assert learnt <= expected
    assert data.report(made[-1][1]).dropped == made[-1][1][0]["dropped"] > 0
    said = {"role": "assistant", "content": "ok"}
    mute = write_jsonl(tmp_path / "mute.jsonl", [{"messages": [{"role": "user", "content": "x"}]}] * 3)
    empty = make_data(config(tmp_path, sources=[{"path": str(mute), "kind": "chat"}]), tok).batches([0])
    with (
        pytest.warns(UserWarning, match=r"mute\.jsonl:\d is left out: there is nothing to learn in it \(1"),
        pytest.raises(ValueError, match=r"must hold examples that fit in data\.length=128, got none in 10000"),
    ):
        next(empty)
    broken = write_jsonl(tmp_path / "broken.jsonl", [{"messages": [{"role": "wizard", "content": "x"}, said]}])
    with pytest.raises(ValueError, match=r"broken\.jsonl:0: .*wizard"):
        next(make_data(config(tmp_path, sources=[{"path": str(broken), "kind": "chat"}]), tok).batches([0]))
