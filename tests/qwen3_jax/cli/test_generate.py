"""`qwen3-jax generate` in this process, on random weights; the mistakes it refuses are in test_mistakes.py."""

import json

import pytest

from qwen3_jax import infer
from qwen3_jax.checkpoints.load import from_pretrained
from qwen3_jax.text.tokenizer import load_tokenizer

SHORT = ("--dtype", "float32", "--max-new-tokens", "40")
KEYS = {
    "tokens", "thinking", "content", "tool_calls", "thinking_tokens", "budget_exhausted", "finish_reason",
    "prompt_tokens", "load_seconds", "seconds", "tokens_per_second",
}  # fmt: skip


@pytest.fixture
def answer(run, checkpoint):
    """Runs generate with --json and returns its object."""

    def call(*argv, stdin=""):
        ran = run("generate", "--model", checkpoint, *SHORT, "--json", *argv, stdin=stdin)
        assert (ran.status, ran.err) == (0, "")
        assert ran.out.count("\n") == 1
        return json.loads(ran.out)

    return call


def direct(checkpoint, item, **config):
    model, params = from_pretrained(checkpoint, dtype="float32")
    config = infer.GenerationConfig(**{"max_new_tokens": 40, **config})
    return infer.generate(model, params, load_tokenizer(checkpoint), [item], config)[0]


def test_json_is_what_the_library_gives_for_one_user_message(answer, checkpoint):
    result = answer("--prompt", "What is 3 plus 4?", "--seed", "5")
    expected = direct(checkpoint, [{"role": "user", "content": "What is 3 plus 4?"}], seed=5)
    assert result.keys() == KEYS
    for name in KEYS - {"load_seconds", "seconds", "tokens_per_second"}:
        assert result[name] == getattr(expected, name), name
    assert result["seconds"] > 0
    assert result["tokens_per_second"] > 0


def test_raw_text_is_continued_as_it_stands(answer, checkpoint):
    result = answer("--raw", "The answer is", "--temperature", "0")
    assert result["tokens"] == direct(checkpoint, "The answer is", temperature=0).tokens
    assert result["prompt_tokens"] == len(load_tokenizer(checkpoint).encode("The answer is"))


def test_a_prompt_file_stdin_and_messages_say_the_same_as_prompt(answer, tmp_path):
    expected = answer("--prompt", "two\nlines", "--system", "be brief")["tokens"]
    file, messages = tmp_path / "prompt.txt", tmp_path / "messages.json"
    file.write_text("two\nlines\n", encoding="utf-8")
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "two\nlines"}]
    messages.write_text(json.dumps(turns), encoding="utf-8")
    assert answer("--prompt-file", file, "--system", "be brief")["tokens"] == expected
    assert answer("--prompt-file", "-", "--system", "be brief", stdin="two\nlines\n")["tokens"] == expected
    assert answer("--messages", messages)["tokens"] == expected


def test_tools_reach_the_template(answer, tmp_path):
    file = tmp_path / "tools.json"
    file.write_text(json.dumps([{"type": "function", "function": {"name": "find", "parameters": {}}}]))
    assert answer("--prompt", "x", "--tools", file)["prompt_tokens"] > answer("--prompt", "x")["prompt_tokens"] + 50


def test_every_sampling_flag_is_a_field_of_the_config(answer, checkpoint):
    flags = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.01, "presence_penalty": 1.5, "seed": 3,
        "thinking_budget": 2, "stop_thinking_text": "\nenough\n</think>\n\n",
    }  # fmt: skip
    argv = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", value)]
    result = answer("--prompt", "3 plus 4", "--stop", "never", "--stop", "nor this", *argv)
    message = [{"role": "user", "content": "3 plus 4"}]
    assert result["tokens"] == direct(checkpoint, message, stop=("never", "nor this"), **flags).tokens


def test_an_open_block_is_closed_at_the_budget(answer):
    result = answer("--raw", "<think>\n", "--thinking-budget", "3", "--stop-thinking-text", "so\n</think>\n\n")
    assert result["thinking_tokens"] == 3
    assert result["budget_exhausted"]
    assert result["thinking"].endswith("so")


def test_no_thinking_gives_an_empty_block_in_the_prompt(answer):
    assert answer("--prompt", "x", "--no-thinking")["prompt_tokens"] > answer("--prompt", "x")["prompt_tokens"]
    assert answer("--prompt", "x", "--thinking")["tokens"] == answer("--prompt", "x")["tokens"]


def test_a_pipe_gets_the_answer_alone_and_the_thinking_when_asked(run, answer, checkpoint):
    asked = ("--raw", "<think>\n", "--thinking-budget", "3")
    result = answer(*asked)
    plain = run("generate", "--model", checkpoint, *SHORT, *asked)
    cut = "warning: cut at 40 tokens: raise --max-new-tokens\n"  # on stderr: the answer stays alone on stdout
    assert plain == (0, result["content"] + "\n", cut)
    shown = run("generate", "--model", checkpoint, *SHORT, *asked, "--show-thinking")
    assert shown == (0, f"<think>\n{result['thinking']}\n</think>\n\n{result['content']}\n", cut)


def test_a_terminal_gets_thinking_dimmed_and_a_line_of_numbers(run, checkpoint, monkeypatch):
    asked = ("--raw", "<think>\n", "--thinking-budget", "3", "--stop-thinking-text", "so\n</think>\n\n")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    out = run("generate", "--model", checkpoint, *SHORT, *asked).out
    assert "\x1b[2m" in out.split("so")[0]
    assert "3 thinking, thinking budget reached, cut at the longest length" in out


def test_without_a_model_the_embedded_one_answers(run):
    ran = run("generate", "--prompt", "What is 3+4 mod 10, left to right?", "--temperature", "0", "--json")
    assert ran.status == 0
    result = json.loads(ran.out)
    assert "3+4=7" in result["thinking"]
    assert "7" in result["content"]
    assert result["finish_reason"] == "stop"


def test_a_setting_without_effect_is_said_in_one_line(run, checkpoint):
    ran = run("generate", "--model", checkpoint, *SHORT, "--raw", "x", "--no-thinking")
    assert ran.status == 0
    first, cut = ran.err.splitlines()
    assert first.startswith("warning: no effect: enable_thinking")
    assert cut.startswith("warning: cut at 40 tokens")


def test_help_lists_every_flag(run):
    ran = run("generate", "--help")
    assert (ran.status, ran.err) == (0, "")
    for (
        flag
    ) in "--prompt --raw --prompt-file --messages --tools --thinking --no-thinking --thinking-budget --json".split():
        assert flag in ran.out
