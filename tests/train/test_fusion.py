"""Thinking-mode fusion: each shape of table 9 as text, the loss mask, the shares, and that the last flag decides."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3_jax.text.tokenizer import Tokenizer, load_tokenizer
from qwen3_jax.train.data.chat_loss_mask import answer_parts
from qwen3_jax.train.data.examples import Encoder
from qwen3_jax.train.fusion import NO_THINK, THINK, Fused, fuse, fuse_turns, last_flag, split_thinking
from qwen3_jax.train.settings import FusionConfig, SourceConfig
from tests.support import shared_dir
from tests.train.pocket_fixtures import pocket_tokenizer

QUESTION = {"role": "user", "content": "What is 2+2?"}
THOUGHT = {"role": "assistant", "content": "It is 4.", "reasoning_content": "2+2=4"}
PLAIN = {"role": "assistant", "content": "It is 4."}
EARLIER = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello.", "reasoning_content": "A hi."}]


@pytest.fixture(scope="module", params=["pocket", "official"])
def tok(request) -> Tokenizer:
    if request.param == "pocket":
        return pocket_tokenizer()
    directory = shared_dir()
    if directory is None:
        pytest.skip("no shared data: set QWEN3_JAX_SHARED to its directory")
    return load_tokenizer(Path(directory) / "qwen3" / "tokenizer")


def parts(tok: Tokenizer, sample: Fused) -> Any:
    return answer_parts(tok, sample.messages, end="<|im_end|>", enable_thinking=sample.enable_thinking)


def drawn(messages: Any, wanted: Any, **config: float) -> Fused:
    """The first draw with the wanted prompt's words."""
    for index in range(500):
        sample = fuse(messages, FusionConfig(**config), (0, index))
        if [message["content"] for message in sample.messages[:-1]] == wanted:
            return sample
    raise AssertionError(f"{wanted} is never drawn")


ANSWERS = {
    "think": "<think>\n2+2=4\n</think>\n\nIt is 4.<|im_end|>",
    "no_think": "<think>\n\n</think>\n\nIt is 4.<|im_end|>",
}
ANSWERS["hard"] = "It is 4.<|im_end|>"


def test_every_shape_of_table_9_is_rendered_to_the_letter(tok) -> None:
    ask = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    said = "<|im_start|>user\nHi{}<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
    one, several = [QUESTION, THOUGHT], [*EARLIER, QUESTION, PLAIN]
    cases = [
        (one, ["What is 2+2? /think"], {"flagged": 1.0}, "think", ask.format("What is 2+2? /think")),
        (one, ["/think What is 2+2?"], {"flagged": 1.0}, "think", ask.format("/think What is 2+2?")),
        (one, ["What is 2+2?"], {"flagged": 0.0}, "think", ask.format("What is 2+2?")),
        (
            one,
            ["/think", "What is 2+2?"],
            {"flagged": 1.0},
            "think",
            "<|im_start|>system\n/think<|im_end|>\n" + ask.format("What is 2+2?"),
        ),
        (
            one,
            ["What is 2+2? /no_think"],
            {"drop_thinking": 1, "hard": 0},
            "no_think",
            ask.format("What is 2+2? /no_think"),
        ),
        ([QUESTION, PLAIN], ["What is 2+2? /no_think"], {"hard": 0}, "no_think", ask.format("What is 2+2? /no_think")),
        (
            [QUESTION, PLAIN],
            ["What is 2+2?"],
            {"hard": 1},
            "hard",
            ask.format("What is 2+2?") + "<think>\n\n</think>\n\n",
        ),
        (
            several,
            ["Hi /think", "Hello.", "What is 2+2? /no_think"],
            {"hard": 0},
            "no_think",
            said.format(" /think") + ask.format("What is 2+2? /no_think"),
        ),
        (
            several,
            ["Hi /no_think", "Hello.", "What is 2+2?"],
            {"hard": 0},
            "no_think",
            said.format(" /no_think") + ask.format("What is 2+2?"),
        ),
    ]
    for messages, wanted, config, mode, prompt in cases:
        sample = drawn(messages, wanted, **config)
        assert sample.mode == mode
        assert parts(tok, sample) == [(prompt, False), (ANSWERS[mode], True)], wanted


def test_prompt_is_the_one_that_generation_renders_and_the_mask_covers_the_answer(tok) -> None:
    sample = fuse([*EARLIER, QUESTION, THOUGHT], FusionConfig(), (1, 2))
    (prompt, _), (answer, learnt) = parts(tok, sample)
    assert prompt == tok.render(list(sample.messages[:-1]), enable_thinking=True, add_generation_prompt=True)
    ids = [(token, counts) for text, counts in parts(tok, sample) for token in [*tok.encode(text)]]
    assert learnt
    assert tok.decode(tok.encode(prompt)) == prompt
    assert len(ids) > len(tok.encode(answer))
    assert tok.encode(answer)[-1] == tok.eos_token_id


def test_tool_calls_are_learnt_and_steps_of_a_loop_keep_their_thinking(tok) -> None:
    call = {"name": "add", "arguments": {"a": 2, "b": 2}}
    loop = [QUESTION, {"role": "assistant", "content": "", "reasoning_content": "Use add.", "tool_calls": [call]}]
    (_, _), (answer, _) = parts(tok, fuse(loop, FusionConfig(), (0, 0)))
    assert answer.startswith("<think>\nUse add.\n</think>\n\n<tool_call>\n")
    assert answer.endswith("</tool_call><|im_end|>")
    whole = [*loop, {"role": "tool", "content": "4"}, THOUGHT]
    (prompt, _), _ = parts(tok, fuse(whole, FusionConfig(), (0, 0)))
    assert "Use add." in prompt
    dropped = fuse(whole, FusionConfig(drop_thinking=1), (0, 0))
    assert "Use add." not in "".join(text for text, _ in parts(tok, dropped))


def test_shares_are_those_asked_for() -> None:
    config = FusionConfig(drop_thinking=0.25, flagged=0.4, hard=0.3, elsewhere=0.2)
    modes: Counter[str] = Counter()
    flagged, elsewhere, first = [], [], []
    for index in range(2000):
        history = EARLIER * (index % 3)
        sample = fuse([*history, QUESTION, THOUGHT if index % 2 else PLAIN], config, (7, index))
        modes[sample.mode, index % 2] += 1
        flag, own = last_flag(sample.messages[:-1]), last_flag(sample.messages[-2:-1])
        if sample.mode == "think" and not history:
            flagged.append(bool(flag))
        if sample.mode == "no_think":
            elsewhere.append(not own)
            if own:
                first.append(sample.messages[-2]["content"].startswith("/"))
    assert abs(modes["think", 1] / 1000 - 0.75) < 0.03
    without = 1000 + 1000 - modes["think", 1]
    assert abs((modes["hard", 0] + modes["hard", 1]) / without - 0.3) < 0.03
    assert modes["think", 0] == 0
    assert abs(np.mean(flagged) - 0.4) < 0.06
    assert abs(np.mean(elsewhere) - 0.2) < 0.04
    assert abs(np.mean(first) - 0.1) < 0.03


def test_the_last_flag_decides_and_earlier_turns_have_flags_of_both_kinds() -> None:
    seen: Counter[Any] = Counter()
    for index in range(2000):
        sample = fuse([*EARLIER, *EARLIER, QUESTION, THOUGHT if index % 2 else PLAIN], FusionConfig(), (3, index))
        texts = [message["content"] for message in sample.messages[:-1]]
        flags = re.findall(r"/(?:no_)?think", " ".join(texts))
        if sample.mode != "hard":
            assert (flags[-1:] == [NO_THINK]) == (sample.mode == "no_think"), texts
            assert bool(sample.messages[-1].get("reasoning_content")) == (sample.mode == "think")
        seen[sample.mode, tuple(flags)] += 1
    assert seen["no_think", (THINK, NO_THINK, NO_THINK)]
    assert seen["no_think", (THINK, THINK, NO_THINK)]
    assert seen["think", (NO_THINK, NO_THINK, THINK)]
    assert seen["think", ()]
    assert not seen["think", (NO_THINK,)]


def test_a_sample_depends_on_the_seed_alone_and_the_conversation_is_left_alone() -> None:
    messages = [*EARLIER, dict(QUESTION), dict(THOUGHT)]
    ahead = [fuse(messages, FusionConfig(), (1, index)) for index in range(30)]
    assert [fuse(messages, FusionConfig(), (1, index)) for index in reversed(range(30))] == ahead[::-1]
    assert len({str(sample) for sample in ahead}) > 5
    assert messages[-2] == QUESTION


def test_flags_that_stand_there_are_kept_and_a_contradiction_is_refused() -> None:
    asked = {"role": "user", "content": "What is 2+2? /no_think"}
    assert fuse([asked, PLAIN], FusionConfig(), (0,)).messages == (asked, PLAIN)
    assert fuse([asked, PLAIN], FusionConfig(), (0,)).mode == "no_think"
    path = {"role": "user", "content": "What is in /etc/think?"}
    assert last_flag([path]) == ""
    for messages, words in [
        ([asked, THOUGHT], "got /no_think and an answer with thinking"),
        ([{"role": "user", "content": "x /think"}, PLAIN], "got /think and an answer without thinking"),
        ([PLAIN], "must be questions and, last, an answer"),
        ([QUESTION], "must be questions and, last, an answer"),
    ]:
        with pytest.raises(ValueError, match=words):
            fuse(messages, FusionConfig(), (0,))
    with pytest.raises(ValueError, match=r"fusion\.hard must be in 0\.\.1, got 2"):
        FusionConfig(hard=2)


def test_thinking_inside_the_content_counts_as_thinking(tok) -> None:
    block = {"role": "assistant", "content": "<think>\n2+2=4\n</think>\n\nIt is 4."}
    assert split_thinking(block) == ("2+2=4", "It is 4.")
    sample = fuse([QUESTION, block], FusionConfig(), (0, 0))
    assert sample.mode == "think"
    assert parts(tok, sample)[1] == (ANSWERS["think"], True)
    dropped = fuse([QUESTION, block], FusionConfig(drop_thinking=1, hard=0), (0, 0))
    assert parts(tok, dropped)[1] == (ANSWERS["no_think"], True)


def test_a_source_with_fusion_gives_a_sample_for_each_answer(tok) -> None:
    source = SourceConfig(path="x.jsonl", kind="chat", fusion=FusionConfig(hard=0.0))
    encoder, record = Encoder(tok, source), {"messages": [*EARLIER, QUESTION, PLAIN]}
    documents = encoder.documents(record)
    samples = fuse_turns(record["messages"], source.fusion, encoder.digest(record))
    assert [sample.mode for sample in samples] == ["think", "no_think"]
    for document, sample in zip(documents, samples, strict=True):
        (prompt, _), (answer, _) = parts(tok, sample)
        assert tok.decode(document.tokens.tolist()) == prompt + answer
        assert tok.decode(document.tokens[document.loss].tolist()) == answer
    unlearnt = {"messages": [EARLIER[0], EARLIER[1] | {"weight": 0}, QUESTION, PLAIN]}
    assert len(encoder.documents(unlearnt)) == 1
    other = SourceConfig(path="x.jsonl", kind="chat", fusion=FusionConfig(seed=1, hard=0.0))
    assert Encoder(tok, other).key() != encoder.key()
    with pytest.raises(ValueError, match="enable_thinking is drawn by"):
        encoder.documents(record | {"enable_thinking": False})
    with pytest.raises(ValueError, match="fusion needs kind: chat and thinking: template, got chat and keep"):
        SourceConfig(path="x", kind="chat", thinking="keep", fusion=FusionConfig())
