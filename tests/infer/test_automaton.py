"""The phase automaton against a row-by-row reference in plain Python, on random token streams."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.infer.automaton import (
    ANSWERING,
    CLOSING,
    DONE,
    END,
    IN_CONTENT,
    IN_THINKING,
    NOTHING,
    TAG,
    THINKING,
    UNLIMITED,
    Tokens,
    advance,
    initial,
)

THINK, END_THINK, EOS, OTHER_EOS, PAD, NEWLINE = 1, 2, 3, 4, 0, 5
TOKENS = Tokens(
    think=jnp.int32(THINK),
    end_think=jnp.int32(END_THINK),
    pad=jnp.int32(PAD),
)


def reference(stream, open_block, budget, max_new, closing, content):
    """What one row must put out: written as the documentation says it, one token after another."""
    out, parts, sampled, count, exhausted = [], [], [], 0, False
    stream = iter(stream)
    inside = open_block

    def emit(token, part, own=True):
        out.append(token)
        parts.append(part)
        sampled.append(own)
        return len(out) == max_new

    def told(end):
        return out, parts, sampled, count, exhausted, end

    while True:
        token = next(stream)
        if inside and count >= budget and not (budget > 0 and token == END_THINK):
            exhausted, inside = True, False
            for i, fed in enumerate(closing):
                part = IN_THINKING if END_THINK not in closing[: i + 1] else IN_CONTENT if i >= content else TAG
                if emit(fed, part, own=False):
                    return told(False)
            continue
        if token in (EOS, OTHER_EOS):
            emit(token, END)
            return told(True)
        if inside and token == END_THINK:
            inside, full = False, emit(token, TAG)
        elif inside:
            count += 1
            full = emit(token, IN_THINKING)
        elif token == THINK:
            inside, full = True, emit(token, TAG)
        else:
            full = emit(token, IN_CONTENT)
        if full:
            return told(False)


def run(streams, open_block, budget, max_new, closing, content=None):
    """The automaton over the same streams. A sample that is thrown away for a fed token is used up like any other; no
    sample is used while the text is being fed."""
    closing_array = np.zeros((len(streams), 8), np.int32)
    for i, text in enumerate(closing):
        closing_array[i, : len(text)] = text
    state = initial(
        open_block=jnp.asarray(open_block),
        budget=jnp.asarray(budget, jnp.int32),
        max_new_tokens=jnp.asarray(max_new, jnp.int32),
        closing=jnp.asarray(closing_array),
        closing_length=jnp.asarray([len(text) for text in closing], jnp.int32),
        closing_content=jnp.asarray(content or [len(text) for text in closing], jnp.int32),
        ends=jnp.tile(jnp.array([[EOS, OTHER_EOS, -1]], jnp.int32), (len(streams), 1)),
    )
    step = jax.jit(advance)
    out = [([], [], []) for _ in streams]
    used = [0] * len(streams)
    while not np.all(np.asarray(state.phase) == DONE):
        sample = [stream[min(i, len(stream) - 1)] for stream, i in zip(streams, used, strict=True)]
        takes = np.isin(np.asarray(state.phase), (THINKING, ANSWERING))
        state, made = step(state, jnp.asarray(sample, jnp.int32), TOKENS)
        for i in range(len(streams)):
            used[i] += int(takes[i])
            if made.part[i] != NOTHING:
                for kept, value in zip(out[i], made, strict=True):
                    kept.append(value[i].item())
    return out, state, step


def test_random_rows_equal_the_reference():
    rng = np.random.default_rng(3)
    rows = 300
    # Tags and ends are common, so that every order of events happens.
    streams = rng.choice(
        [1, 2, 3, 5, 6, 7, 8, 9], (rows, 60), p=[0.1, 0.1, 0.04, 0.16, 0.15, 0.15, 0.15, 0.15]
    ).tolist()
    open_block = rng.random(rows) < 0.4
    budget = np.where(rng.random(rows) < 0.2, UNLIMITED, rng.integers(0, 12, rows))
    max_new = rng.integers(1, 50, rows)
    closing = [[NEWLINE, 6, 7, END_THINK, NEWLINE, 8][rng.integers(0, 4) :] for _ in range(rows)]
    content = [len(text) - int(kept) for text, kept in zip(closing, rng.integers(0, 3, rows), strict=True)]
    out, state, step = run(streams, open_block, budget, max_new, closing, content)
    for i in range(rows):
        expected = reference(streams[i], open_block[i], budget[i], max_new[i], closing[i], content[i])
        got = (*out[i], int(state.thinking_tokens[i]), bool(state.exhausted[i]), bool(state.hit_end[i]))
        assert got == expected, (i, streams[i], open_block[i], budget[i], max_new[i], closing[i])
        assert got[3] <= budget[i]
        assert int(state.generated[i]) == len(out[i][0])
    assert step._cache_size() == 1
    # The streams did reach every kind of ending.
    assert 0 < int(state.exhausted.sum()) < rows
    assert 0 < int(state.hit_end.sum()) < rows


@pytest.mark.parametrize(
    ("stream", "open_block", "budget", "expected"),
    [
        # The model opens and closes the block itself.
        ([THINK, 8, 8, END_THINK, 9, EOS], False, 5, ([THINK, 8, 8, END_THINK, 9, EOS], 2, False)),
        # The budget closes it after exactly three sampled tokens.
        ([THINK, 8, 8, 8, 7, 9, EOS], False, 3, ([THINK, 8, 8, 8, 6, END_THINK, NEWLINE, 9, EOS], 3, True)),
        # An open block in the prompt and no budget at all.
        ([7, 9, EOS], True, 0, ([6, END_THINK, NEWLINE, 9, EOS], 0, True)),
        # A block opened again after the budget is closed at once.
        ([THINK, 8, 7, 9, THINK, 7, 9, EOS], False, 1, ([THINK, 8, 6, 2, 5, 9, THINK, 6, 2, 5, 9, EOS], 1, True)),
        # The sample after the last one of the budget is the model's own tag: a natural close.
        ([THINK, 8, 8, END_THINK, 9, EOS], False, 2, ([THINK, 8, 8, END_THINK, 9, EOS], 2, False)),
        # An end token there is not: the budget closes the block, and the model goes on.
        ([THINK, 8, 8, EOS, 9, EOS], False, 2, ([THINK, 8, 8, 6, END_THINK, NEWLINE, 9, EOS], 2, True)),
        # With a budget of 0 the sample is not looked at.
        ([END_THINK, 9, EOS], True, 0, ([6, END_THINK, NEWLINE, 9, EOS], 0, True)),
        # The answer never thinks: no budget is needed and none is counted.
        ([9, 9, EOS], False, 0, ([9, 9, EOS], 0, False)),
    ],
)
def test_literal_rows(stream, open_block, budget, expected):
    out, state, _ = run([stream], [open_block], [budget], [40], [[6, END_THINK, NEWLINE]])
    assert (out[0][0], int(state.thinking_tokens[0]), bool(state.exhausted[0])) == expected


def test_phases_are_distinct():
    assert len({THINKING, CLOSING, ANSWERING, DONE}) == 4
    assert len({IN_THINKING, TAG, IN_CONTENT, END, NOTHING}) == 5
