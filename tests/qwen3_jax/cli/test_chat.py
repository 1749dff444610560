"""`qwen3-jax chat`: commands, history, Ctrl-C. What the model is asked is recorded by a stand-in for `infer.stream`."""

import json
import os
import signal

import pytest

from qwen3_jax import infer


def piece(text="", result=None, thinking=""):
    return infer.Piece(index=0, thinking=thinking, content=text, result=result)


def result(content, thinking=""):
    return infer.Result(
        tokens=[1],
        thinking=thinking,
        content=content,
        tool_calls=[],
        thinking_tokens=0,
        budget_exhausted=False,
        finish_reason="stop",
        prompt_tokens=1,
    )


@pytest.fixture
def chat(run, checkpoint, monkeypatch):
    """Runs a chat over the lines of stdin; returns what it wrote, and the (messages, config) of every turn."""

    def call(*lines, argv=(), answer=None, model=checkpoint):
        turns = []

        def stream(model, params, tok, inputs, config):
            turns.append((inputs[0], config))
            number = len(turns)
            if answer:
                return answer(number)
            return iter(
                [piece(f"answer {number}", result(f"answer {number}", f"thought {number}"), f"thought {number}")]
            )

        monkeypatch.setattr(infer, "stream", stream)
        ran = run("chat", "--model", model, *argv, stdin="".join(line + "\n" for line in lines))
        return ran, turns

    return call


def said(turn):
    return [(message["role"], message["content"]) for message in turn[0]]


def test_turns_build_on_each_other_and_stdout_has_the_answers_alone(chat):
    ran, turns = chat("hello", "", "and then?", argv=("--system", "be brief"))
    assert ran == (0, "answer 1\nanswer 2\n", "")
    assert said(turns[0]) == [("system", "be brief"), ("user", "hello")]
    assert said(turns[1])[1:] == [("user", "hello"), ("assistant", "answer 1"), ("user", "and then?")]
    # The thinking goes along for the template, which knows which turns show it.
    assert turns[1][0][2]["reasoning_content"] == "thought 1"


def test_thinking_of_a_pipe_is_shown_when_asked(chat):
    assert chat("hello", argv=("--show-thinking",))[0].out == "<think>\nthought 1\n</think>\n\nanswer 1\n"


def test_the_soft_switch_is_added_to_the_messages_that_follow_and_inside_a_message_nothing_is_touched(chat):
    ran, turns = chat("what is /think for", "/no_think", "two", "three /think", "/think", "four")
    assert [said(turn)[-1][1] for turn in turns] == [
        "what is /think for",
        "two /no_think",
        "three /think /no_think",
        "four /think",
    ]
    assert ran.err == "thinking is off\nthinking is on\n"


def test_the_soft_switch_lifts_the_hard_one_and_a_budget_of_zero_stays(chat):
    _, turns = chat("one", "/think", "two", argv=("--no-thinking",))
    assert [turn[1].thinks for turn in turns] == [False, True]
    ran, turns = chat("/think", "two", argv=("--thinking-budget", "0"))
    assert not turns[0][1].thinks
    assert "/budget off" in ran.err


def test_budget(chat):
    ran, turns = chat("/budget 7", "one", "/budget off", "two", "/budget", "/budget -1", "/budget few", "three")
    assert [turn[1].thinking_budget for turn in turns] == [7, None, None]
    assert ran.err.count("error: /budget must be followed by a whole number or off") == 3


def test_reset_forgets_everything_but_the_system_message(chat):
    _, turns = chat("one", "/reset", "two", argv=("--system", "be brief"))
    assert said(turns[1]) == [("system", "be brief"), ("user", "two")]


def test_help_exit_and_what_is_no_command(chat):
    ran, turns = chat("/help", "/hlep", "/etc/passwd is what?", "/exit", "never asked")
    assert ran.status == 0
    assert "/budget N" in ran.err
    assert "did you mean /help?" in ran.err
    assert [said(turn)[-1][1] for turn in turns] == ["/etc/passwd is what?"]


def test_every_turn_has_a_seed_of_its_own(chat):
    assert [turn[1].seed for turn in chat("a", "b", argv=("--seed", "4"))[1]] == [4, 5]


def test_the_longest_answer_shrinks_with_what_the_context_has_left(chat):
    _, turns = chat("7 " * 100, "7 " * 100, argv=("--max-new-tokens", "300"))
    assert turns[0][1].max_new_tokens == 300
    assert 0 < turns[1][1].max_new_tokens < 100


def test_the_context_of_a_chat_is_that_of_yarn(chat, broken):
    config = json.loads((broken / "config.json").read_text())
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    (broken / "config.json").write_text(json.dumps(config | {"rope_scaling": yarn}))
    _, turns = chat("7 " * 100, "7 " * 100, argv=("--max-new-tokens", "300"), model=broken)
    assert [config.max_new_tokens for _, config in turns] == [300, 300]


def test_ctrl_c_stops_the_answer_and_keeps_what_was_written(chat):
    def answer(number):
        yield piece("begun", thinking="hm")
        if number == 1:
            os.kill(os.getpid(), signal.SIGINT)
        yield piece(" and on")
        if number == 1:
            pytest.fail("not stopped")
        yield piece("", result("begun and on", "hm"))

    ran, turns = chat("one", "two", answer=answer)
    assert ran.status == 0
    assert ran.out == "begun and on\n" * 2
    assert ran.err.startswith("stopped")
    assert said(turns[1])[1] == ("assistant", "begun and on")
    assert turns[1][0][1]["reasoning_content"] == "hm"


def test_a_second_ctrl_c_does_not_wait_for_the_model(chat):
    def answer(number):
        yield piece("begun")
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("not stopped")

    ran, _ = chat("one", answer=answer)
    assert (ran.status, ran.out) == (0, "begun\n")


def test_a_conversation_that_outgrows_the_context_says_so_and_goes_on(run, checkpoint):
    """With the real loop: 512 tokens of context."""
    lines = ["7 " * 600, "7 " * 150, "7 " * 150, "/reset", "7 " * 150]
    argv = ("--dtype", "float32", "--max-new-tokens", "8", "--thinking-budget", "0", "--stop", "never")
    ran = run("chat", "--model", checkpoint, *argv, stdin="\n".join(lines))
    assert ran.status == 0
    errors = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2  # the first message alone, and the third turn with what went before
    assert all("context of 512 tokens" in line and "/reset starts a new conversation" in line for line in errors)
    assert "the conversation is empty again" in ran.err
