"""The program as users start it: exit status, imports, the compile cache, a terminal with Ctrl-C and Ctrl-D."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time

import pytest

from qwen3_jax.compile_cache import VARIABLE
from tests.support import REPO

COMMAND = [sys.executable, "-m", "qwen3_jax.cli"]
PATIENCE = 500  # seconds, for machines that do other things too


def environment(cache):
    return {**os.environ, VARIABLE: str(cache), "TERM": "dumb", "PYTHONWARNINGS": "default", "NO_COLOR": "1"}


def start(*argv, cache="off", **more):
    words = [*COMMAND, *(str(word) for word in argv)]
    return subprocess.run(
        words, cwd=REPO, env=environment(cache), capture_output=True, text=True, timeout=PATIENCE, check=False, **more
    )


def test_a_mistake_ends_with_status_2_before_jax_is_imported():
    ran = start("generate", "--promt", "x")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert re.fullmatch(r"error: .*did you mean --prompt\?\n", ran.stderr)
    check = (
        "import sys; from qwen3_jax.cli import main; main(['generate', '--help']); main(['chat', '--promt', 'x']); "
        "print('jax' in sys.modules)"
    )
    lines = subprocess.run([sys.executable, "-c", check], cwd=REPO, capture_output=True, text=True, check=True).stdout
    assert lines.splitlines()[-1] == "False"


def test_a_second_start_compiles_nothing(checkpoint, tmp_path):
    cache = tmp_path / "cache"
    argv = ("generate", "--model", checkpoint, "--prompt-file", "-", "--max-new-tokens", "20", "--json")
    first = start(*argv, cache=cache, input="hello\n")
    assert (first.returncode, first.stderr) == (0, "")
    programs = {path.name for path in cache.iterdir() if path.name.endswith("-cache")}
    assert any(name.startswith("jit_decode-") for name in programs)
    second = start(*argv, cache=cache, input="hello\n")
    assert (second.returncode, second.stderr) == (0, "")
    assert {path.name for path in cache.iterdir() if path.name.endswith("-cache")} == programs
    assert json.loads(second.stdout)["tokens"] == json.loads(first.stdout)["tokens"]


def test_a_reader_that_leaves_ends_the_program_quietly():
    words = " ".join(COMMAND)
    ran = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {words} inspect --model-config qwen3-0.6b | true"],
        cwd=REPO,
        env=environment("off"),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ran.returncode in (0, 128 + signal.SIGPIPE)
    assert ran.stderr == ""


class Terminal:
    """The program on a pseudo-terminal."""

    def __init__(self, *argv):
        self.master, slave = pty.openpty()
        words = [*COMMAND, *(str(word) for word in argv)]
        self.process = subprocess.Popen(
            words, cwd=REPO, env=environment("off"), stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        self.shown = ""

    def expect(self, pattern, again=None):
        """Reads until `pattern` shows up; returns the text up to its end. Does `again` every ten seconds until then."""
        end, due = time.monotonic() + PATIENCE, time.monotonic() + 10
        while not (found := re.search(pattern, self.shown, re.S)):
            if again and time.monotonic() > due:
                again()
                due = time.monotonic() + 10
            assert time.monotonic() < end, f"{pattern!r} did not come: {self.shown!r}"
            if select.select([self.master], [], [], 1)[0]:
                try:
                    data = os.read(self.master, 65536)
                except OSError:  # closed at the other end
                    data = b""
                assert data, f"ended before {pattern!r}: {self.shown!r}"
                self.shown += data.decode(errors="replace")
        before, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return before

    def type(self, text):
        os.write(self.master, text.encode())

    def ctrl_c(self):
        self.process.send_signal(signal.SIGINT)

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def endless(checkpoint, tmp_path):
    """The tiny checkpoint with a long context and an end token that is never sampled: its answers do not end."""
    directory = shutil.copytree(checkpoint, tmp_path / "endless")
    config = json.loads((directory / "config.json").read_text()) | {"max_position_embeddings": 32768}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [config["vocab_size"] - 1]}))
    return directory


def test_ctrl_c_stops_the_answer_and_not_the_program_and_ctrl_d_leaves(endless):
    # Thinking, this model would open no block, and what is not known to be thinking is held back to its end.
    terminal = Terminal("chat", "--model", endless, "--dtype", "float32", "--no-thinking")
    try:
        terminal.expect("Ctrl-D to leave.*> ")
        # Readline misses a signal that comes after it has written its prompt and before it waits for a key.
        terminal.ctrl_c()
        terminal.expect("Ctrl-D or /exit leaves.*> ", again=terminal.ctrl_c)
        terminal.type("hello\n")
        terminal.expect("hello\r?\n.{20,}")
        terminal.ctrl_c()
        terminal.expect("stopped; .*> ")
        terminal.type("/budget 5\n")
        terminal.expect("at most 5 tokens of thinking.*> ")
        terminal.type("\x04")
        assert terminal.process.wait(PATIENCE) == 0
    finally:
        terminal.close()
