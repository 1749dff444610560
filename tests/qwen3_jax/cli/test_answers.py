"""What reaches stdout, piece by piece."""

import pytest

from qwen3_jax.cli.answers import AnswerWriter
from qwen3_jax.infer import Piece


@pytest.fixture
def write(monkeypatch, capsys):
    """Writes (thinking, content or tool call) pieces; returns what came out."""

    def call(*pieces, terminal, show_thinking=None):
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("FORCE_COLOR", "1" if terminal else "")
        writer = AnswerWriter(show_thinking)
        for thinking, content in pieces:
            calls = [content] if isinstance(content, dict) else []
            writer.push(Piece(index=0, thinking=thinking, content="" if calls else content, tool_calls=calls))
        writer.close()
        return capsys.readouterr().out

    return call


PIECES = [("So ", ""), ("it is", ""), ("", "Fo"), ("", "ur.")]


@pytest.mark.parametrize(
    ("terminal", "show_thinking", "expected"),
    [
        (False, None, "Four.\n"),
        (False, True, "<think>\nSo it is\n</think>\n\nFour.\n"),
        (True, None, "\x1b[2mSo \x1b[0m\x1b[2mit is\x1b[0m\n\nFour.\n"),
        (True, False, "Four.\n"),
    ],
)
def test_thinking_is_dimmed_on_a_terminal_and_left_out_of_a_pipe(write, terminal, show_thinking, expected):
    assert write(*PIECES, terminal=terminal, show_thinking=show_thinking) == expected


def test_every_piece_is_out_before_the_next_one_comes(capsys):
    writer = AnswerWriter()
    for text in ("One", " two", " three"):
        writer.push(Piece(index=0, content=text))
        assert capsys.readouterr().out == text


def test_thinking_that_is_all_there_is_still_ends_its_block(write):
    assert write(("So", ""), terminal=False, show_thinking=True) == "<think>\nSo\n</think>\n\n\n"


def test_a_model_does_not_steer_the_terminal_and_a_pipe_gets_every_character(write):
    text = "a\x1b[31mb\x07\rc\td\x9b"
    assert write(("", text), terminal=False) == text + "\n"
    assert write(("", text), terminal=True) == "a\ufffd[31mb\ufffd\ufffdc\td\ufffd\n"


def test_markup_is_text(write):
    assert (
        write(("[bold]x[/]", "[red]:smile: 12.5"), terminal=True) == "\x1b[2m[bold]x[/]\x1b[0m\n\n[red]:smile: 12.5\n"
    )


def test_tool_calls_are_written_as_the_model_wrote_them(write):
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": "é"}}}
    text = '<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call>'
    assert write(("", call), terminal=False) == text + "\n"
    assert write(("", "a"), ("", call), ("", call), ("", "\nb"), terminal=False) == f"a\n{text}\n{text}\nb\n"
