"""`qwen3-jax generate`: one prompt, one answer."""

import argparse
import dataclasses
import time
from typing import Any

from qwen3_jax.cli.arguments import Parser, UsageError, whole_number
from qwen3_jax.cli.options import (
    add_generation_options,
    add_model_options,
    add_process_options,
    generation_values,
    read_mesh,
    start_processes,
)

_EPILOG = """\
Text is written to stdout while it is made. In a pipe that is the answer alone (--show-thinking adds the thinking,
between <think> and </think>); numbers and notes go to stderr. --json writes one object when the answer is complete:
thinking, content, tool_calls, tokens (ids of everything after the prompt), thinking_tokens, budget_exhausted,
finish_reason ("stop" or "length"), prompt_tokens, load_seconds, seconds (from prompt to last token, compiling
included) and tokens_per_second. With --log-probs also log_probs (of each token at temperature 1), sampling_log_probs
(as it was drawn) and sampled (false where it was fed at the budget). With --n the answers are a list, "answers".

examples:
  qwen3-jax generate --prompt "7+5*3-2 = ?"
  qwen3-jax generate --model Qwen/Qwen3-0.6B --prompt "Why is the sky blue?" --thinking-budget 256
  qwen3-jax generate --model ./Qwen3-4B --messages chat.json --tools tools.json --json
  qwen3-jax generate --model Qwen/Qwen3-32B --mesh tensor=8 --prompt "Why is the sky blue?"
"""


def parser() -> Parser:
    result = Parser("generate", "Answers one prompt.", _EPILOG, json=True)
    group = result.add_argument_group("prompt", "Exactly one of the first four.")
    sources = group.add_mutually_exclusive_group()
    sources.add_argument("--prompt", metavar="TEXT", help="one user message")
    sources.add_argument("--prompt-file", metavar="FILE", help="a file with one user message, - for stdin")
    sources.add_argument("--messages", metavar="FILE.json", help="a conversation: a list of {role, content, ...}")
    sources.add_argument("--raw", metavar="TEXT", help="text to continue as it stands, without the chat template")
    group.add_argument("--system", metavar="TEXT", help="a system message before --prompt or --prompt-file")
    group.add_argument("--tools", metavar="FILE.json", help="functions that the model may call: a list of JSON schemas")
    add_model_options(result)
    add_generation_options(result)
    add_process_options(result)
    result.add_argument("--n", type=whole_number, metavar="N", help="so many answers, with --json (1)")
    result.add_argument(
        "--log-probs", action="store_true", default=None, help="each token's log-probability, with --json"
    )
    return result


def run(args: argparse.Namespace) -> int:
    """Checks everything that can be checked without the weights, then loads them and answers."""
    _check_sources(args)
    from qwen3_jax.cli.answers import AnswerWriter
    from qwen3_jax.cli.common import load, open_model, print_json, with_spinner
    from qwen3_jax.infer import GenerationConfig, stream
    from qwen3_jax.infer.rows import prepare
    from qwen3_jax.sharding.launch.processes import is_first

    config = GenerationConfig(**generation_values(args))  # type: ignore[arg-type]
    prompt, tools = _read_input(args)
    mesh = read_mesh(args.mesh)
    start_processes(args)
    opened = open_model(args)
    prepare(opened.model, opened.tok, [prompt], config, tools)
    model, params, load_seconds = load(opened, mesh)

    began = time.perf_counter()
    writer = AnswerWriter(args.show_thinking) if is_first() and not args.json else None
    results = {}
    for piece in with_spinner(stream(model, params, opened.tok, [prompt], config, tools)):
        if writer:
            writer.push(piece)
        if piece.result is not None:
            results[piece.index] = piece.result
    seconds = time.perf_counter() - began
    if writer:
        writer.close()
        writer.footer(results[0], seconds)
    elif is_first():
        made = sum(len(result.tokens) for result in results.values())
        times = {"load_seconds": load_seconds, "seconds": seconds, "tokens_per_second": made / seconds}
        told = [
            {name: value for name, value in dataclasses.asdict(results[index]).items() if value is not None}
            for index in range(config.n)
        ]
        answer = told[0] if args.n is None else {"answers": told}
        print_json(answer | {name: round(value, 3) for name, value in times.items()})
    return 0


def _check_sources(args: argparse.Namespace) -> None:
    sources = {name: getattr(args, name) for name in ("prompt", "prompt_file", "messages", "raw")}
    given = [name for name, value in sources.items() if value is not None]
    if not given:
        raise UsageError("a prompt is needed, got none: give --prompt, --prompt-file, --messages or --raw")
    source = f"--{given[0].replace('_', '-')}"
    if args.system is not None and given[0] not in ("prompt", "prompt_file"):
        raise UsageError(f"--system must stand with --prompt or --prompt-file, got {source}: write it there")
    if args.tools is not None and given[0] == "raw":
        raise UsageError("--tools must stand with a chat prompt, got --raw: describe them in the raw text")
    if args.stop_thinking_text is not None and args.thinking_budget is None:
        raise UsageError("--stop-thinking-text is written at the budget, got no budget: add --thinking-budget")
    for flag, value in (("--n", args.n), ("--log-probs", args.log_probs)):
        if value is not None and not args.json:
            raise UsageError(f"{flag} must stand with --json, got text as the output: add --json")
    if args.json and args.show_thinking is not None:
        raise UsageError(
            "--json always holds the thinking, got --show-thinking or --no-show-thinking too: leave it out"
        )


def _read_input(args: argparse.Namespace) -> tuple[str | list[dict[str, Any]], list[dict[str, Any]] | None]:
    """The prompt in the form that `infer` takes, and the tools.

    Raises:
      FileNotFoundError, ValueError: a file that can not be read, malformed messages or tools, an empty prompt.
    """
    from qwen3_jax.cli.common import read_json, read_text
    from qwen3_jax.text.messages import normalize_messages, normalize_tools

    tools = None if args.tools is None else normalize_tools(read_json(args.tools, "--tools"))
    if args.messages is not None:
        return normalize_messages(read_json(args.messages, "--messages")), tools
    if args.raw is not None:
        if not args.raw:
            raise UsageError("--raw must not be empty, got nothing: write the text to continue")
        return args.raw, tools
    text, source = args.prompt, "--prompt"
    if args.prompt_file is not None:
        text, source = read_text(args.prompt_file, "--prompt-file").rstrip("\n"), f"--prompt-file {args.prompt_file}"
    if not text.strip():
        raise UsageError(f"{source} must not be empty, got {text!r}: write something")
    system = [] if args.system is None else [{"role": "system", "content": args.system}]
    return normalize_messages([*system, {"role": "user", "content": text}]), tools
