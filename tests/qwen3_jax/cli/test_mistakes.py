"""Every wrong input: status 2, one line on stderr that says what is wrong, nothing on stdout, no traceback."""

import json
import struct

import pytest

from qwen3_jax import cli


def refused(ran, *words: str) -> None:
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert "Traceback" not in ran.err
    for word in words:
        assert word in ran.err


# --- the command itself ----------------------------------------------------------------------------------------------

COMMANDS = [
    ([], "generate, chat, inspect, convert, tokenize, train"),
    (["generat"], "did you mean generate?"),
    (["--prompt", "x"], "a command must be one of"),
    (["generate", "--promt", "x"], "did you mean --prompt?"),
    (["generate", "--prompt", "x", "--max-tokens=5"], "did you mean --max-new-tokens?"),
    (["generate", "--prom", "x"], "--prompt"),
    (["chat", "--prompt", "x"], "--prompt"),
    (["inspect", "--jsn"], "did you mean --json?"),
    (["train", "--run-dir", "x"], "--run-dir"),
    (["generate"], "--prompt-file"),
    (["generate", "--prompt"], "--prompt must be followed by a value"),
    (["generate", "--prompt", "--json"], "--prompt=VALUE"),
    (["generate", "--prompt", "x", "y"], "y"),
    (["generate", "--prompt", "x", "--raw", "y"], "--raw"),
    (["generate", "--prompt", "x", "--prompt", "y"], "twice"),
    (["generate", "--raw", "x", "--system", "y"], "--system"),
    (["generate", "--raw", "x", "--tools", "y"], "--tools"),
    (["generate", "--prompt", "x", "--json", "--show-thinking"], "--show-thinking"),
    (["generate", "--prompt", "x", "--thinking", "--no-thinking"], "--no-thinking"),
    (["generate", "--prompt", "x", "--stop-thinking-text", "y"], "--thinking-budget"),
    (["train"], "CONFIG"),
    (["train", "no-such.yaml"], "no-such.yaml"),
    (["train", "pocket", "sed=1"], "did you mean seed?"),
    (["train", "pocket", "seed"], "key=value"),
    (["train", "pocket"], "run_dir"),
    (["train", "pocket", "--profile-steps", "10"], "--profile-steps: must be FIRST:LAST such as 10:20"),
    (["train", "pocket", "run_dir=x", "--profile-steps", "20:10"], "a first and a last step"),
    (["export", "no-such-run", "out"], "no-such-run must be the run_dir of a run"),
]


@pytest.mark.parametrize(
    ("argv", "says"), COMMANDS, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_a_mistake_in_the_command(run, argv, says):
    refused(run(*argv), says)


# --- what is asked ---------------------------------------------------------------------------------------------------

SETTINGS = [
    ("--thinking-budget -1", "thinking_budget"),
    ("--thinking-budget few", "whole number"),
    ("--thinking-budget 3000000000", "thinking_budget"),
    ("--thinking-budget 39 --max-new-tokens 40", "room for an answer"),
    ("--temperature nan", "temperature"),
    ("--temperature -0.5", "temperature"),
    ("--temperature=-inf", "temperature"),
    ("--temperature hot", "number"),
    ("--top-p 1.5", "top_p"),
    ("--top-p 0", "top_p"),
    ("--top-k -3", "top_k"),
    ("--top-k 1.5", "whole number"),
    ("--min-p 2", "min_p"),
    ("--presence-penalty 3", "presence_penalty"),
    ("--seed -1", "seed"),
    ("--max-new-tokens 0", "max_new_tokens"),
    ("--dtype int8", "dtype"),
    ("--stop=", "stop"),
    ("--stop-thinking-text= --thinking-budget 3", "stop_thinking_text"),
]


@pytest.mark.parametrize(("flags", "says"), SETTINGS, ids=lambda value: value if value.startswith("--") else "")
@pytest.mark.parametrize("command", ["generate", "chat"])
def test_a_setting_no_sampler_can_use(run, checkpoint, command, flags, says):
    prompt = ["--prompt", "x"] if command == "generate" else []
    refused(run(command, "--model", checkpoint, *prompt, *flags.split()), says)


PROMPTS = {
    "empty prompt": (["--prompt", ""], "must not be empty"),
    "blank prompt": (["--prompt", " \n"], "must not be empty"),
    "empty raw text": (["--raw", ""], "must not be empty"),
    "no such prompt file": (["--prompt-file", "no-such.txt"], "no such file"),
    "a directory as prompt file": (["--prompt-file", "."], "directory"),
    "no such messages": (["--messages", "no-such.json"], "no such file"),
    "no such tools": (["--prompt", "x", "--tools", "no-such.json"], "no such file"),
    "too long an answer": (["--prompt", "x", "--max-new-tokens", "100000"], "context of 512"),
    "too long a prompt": (["--prompt", "7 " * 600], "shorter than the context of 512"),
    "too long a raw text": (["--raw", "7 " * 600], "shorter than the context of 512"),
}


@pytest.mark.parametrize("case", PROMPTS)
def test_a_prompt_that_can_not_be_answered(run, checkpoint, case):
    argv, says = PROMPTS[case]
    refused(run("generate", "--model", checkpoint, *argv), says)


def test_a_prompt_file_that_is_not_text(run, checkpoint, tmp_path):
    (tmp_path / "prompt.txt").write_bytes(b"caf\xe9")
    refused(run("generate", "--model", checkpoint, "--prompt-file", tmp_path / "prompt.txt"), "UTF-8", "at 3")


MESSAGES = {
    "{": "JSON",
    "": "JSON",
    '"hello"': "list",
    "{}": "list",
    "[]": "at least one message",
    "[1]": "messages[0]",
    '[{"role": "user"}]': "messages[0].content",
    '[{"role": "robot", "content": "x"}]': "messages[0].role",
    '[{"role": "user", "content": null}]': "messages[0].content",
    '[{"role": "user", "content": []}]': "messages[0].content",
    '[{"role": "user", "contents": "x", "content": "y"}]': "did you mean content?",
    '[{"role": "user", "content": [{"type": "image"}]}]': "text",
}


@pytest.mark.parametrize("text", MESSAGES)
def test_malformed_messages(run, checkpoint, tmp_path, text):
    (tmp_path / "messages.json").write_text(text)
    refused(run("generate", "--model", checkpoint, "--messages", tmp_path / "messages.json"), MESSAGES[text])


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '[{"type": "function"}]'])
def test_malformed_tools(run, checkpoint, tmp_path, text):
    (tmp_path / "tools.json").write_text(text)
    refused(run("generate", "--model", checkpoint, "--prompt", "x", "--tools", tmp_path / "tools.json"), "tools")


# --- the checkpoint --------------------------------------------------------------------------------------------------


def change_config(**values):
    def damage(directory):
        path = directory / "config.json"
        config = json.loads(path.read_text()) | values
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))

    return damage


def rewrite(name, new):
    """`new`: the bytes, or a function of the old ones."""

    def damage(directory):
        path = directory / name
        path.write_bytes(new if isinstance(new, bytes) else new(path.read_bytes()))

    return damage


def remove(name):
    return lambda directory: (directory / name).unlink()


CHECKPOINTS = {
    "no config": (remove("config.json"), "config.json"),
    "config is not JSON": (rewrite("config.json", b"hello"), "config.json"),
    "config is cut short": (rewrite("config.json", lambda data: data[: len(data) // 2]), "config.json"),
    "config is a list": (rewrite("config.json", b"[]"), "config.json"),
    "another architecture": (change_config(model_type="llama"), "model_type"),
    "no architecture": (change_config(model_type=...), "model_type"),
    "a key of another network": (change_config(qkv_bias=True), "qkv_bias"),
    "a missing key": (change_config(head_dim=...), "head_dim"),
    "heads that do not divide": (change_config(num_key_value_heads=3), "num_key_value_heads"),
    "an unknown rope type": (change_config(rope_scaling={"rope_type": "llama3", "factor": 2.0}), "llama3"),
    "shapes that disagree": (change_config(intermediate_size=64), "48"),
    "too few layers on disk": (change_config(num_hidden_layers=3), "layers.2"),
    "too many layers on disk": (change_config(num_hidden_layers=1), "layers.1"),
    "no weights": (remove("model.safetensors"), "model.safetensors"),
    "weights cut short": (rewrite("model.safetensors", lambda data: data[:-100]), "model.safetensors"),
    "a header cut short": (rewrite("model.safetensors", lambda data: data[:50]), "model.safetensors"),
    "weights are empty": (rewrite("model.safetensors", b""), "model.safetensors"),
    "weights are not safetensors": (rewrite("model.safetensors", lambda data: b"PK" + data), "model.safetensors"),
    "an endless header": (
        rewrite("model.safetensors", lambda data: struct.pack("<Q", 2**60) + data[8:]),
        "model.safetensors",
    ),
    "no tokenizer": (remove("tokenizer.json"), "no tokenizer"),
    "tokenizer is not JSON": (rewrite("tokenizer.json", b"hello"), "tokenizer.json"),
    "tokenizer is cut short": (rewrite("tokenizer.json", lambda data: data[: len(data) // 2]), "tokenizer.json"),
    "no chat template": (rewrite("tokenizer_config.json", b"{}"), "chat template"),
    "a template that is not jinja": (
        rewrite("tokenizer_config.json", b'{"chat_template": "{% if"}'),
        "jinja",
    ),
    "damaged generation config": (
        lambda directory: (directory / "generation_config.json").write_text('{"temperature": "hot"}'),
        "temperature",
    ),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_checkpoint_that_can_not_be_run(run, broken, case):
    damage, says = CHECKPOINTS[case]
    damage(broken)
    refused(run("generate", "--model", broken, "--prompt", "x"), says)


@pytest.mark.parametrize("name", ["no/such/directory", "./nothing", "nobody/nothing", ""])
def test_a_checkpoint_that_is_not_there(run, name):
    refused(run("generate", "--model", name, "--prompt", "x"))


def test_a_file_in_place_of_a_checkpoint(run, checkpoint):
    refused(run("generate", "--model", checkpoint / "config.json", "--prompt", "x"), "directory")


# --- the boundary ----------------------------------------------------------------------------------------------------


def test_debug_shows_the_traceback_too(run):
    ran = run("generate", "--prompt", "x", "--temperature", "nan", "--debug")
    assert ran.status == 2
    assert "Traceback" in ran.err
    assert ran.err.splitlines()[-1].startswith("error: temperature")


def test_a_bug_stays_a_traceback(monkeypatch):
    def bug(arguments):
        raise AssertionError("can not be")

    monkeypatch.setattr(cli, "_run", bug)
    with pytest.raises(AssertionError):
        cli.main([])


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (FloatingPointError("the loss must be finite, got nan"), 1, "error: the loss"),
        (MemoryError(), 1, "error: the memory is not enough"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nwhile allocating"), 1, "error: the memory is not enough"),
        (PermissionError(13, "Permission denied", "/nowhere/x"), 2, "error: /nowhere/x: Permission denied"),
        (ValueError("one\n  two"), 2, "error: one two"),
        (KeyboardInterrupt(), 130, "\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_ends_a_command(monkeypatch, capsys, error, status, says):
    def fail(arguments):
        raise error

    monkeypatch.setattr(cli, "_run", fail)
    assert cli.main([]) == status
    err = capsys.readouterr().err
    assert err.startswith(says)
    assert err.count("\n") == 1
