"""The engine's own calls: rows are prefilled, put into slots of a running batch, and step beside one another."""

import jax
import numpy as np

from qwen3_jax.infer import GenerationConfig, generate
from qwen3_jax.infer.automaton import NOTHING
from qwen3_jax.infer.engine import Engine
from qwen3_jax.infer.rows import prepare

PROMPTS = ["hello", "What is 3 plus 4?", "user hi assistant <think>\n"]
CONFIG = GenerationConfig(temperature=0.0, max_new_tokens=12)


def test_rows_enter_a_running_batch_and_are_as_if_alone(dense):
    """Two rows begin in slots 2 and 0; the third enters slot 1 four steps later. Slot 1 makes nothing until then."""
    rows = prepare(dense.model, dense.tok, PROMPTS, [CONFIG] * 3, None)
    expected = [result.tokens for result in generate(*dense, PROMPTS, [CONFIG] * 3)]
    engine = Engine.of(*dense, rows, mesh=None)

    prefix, first = engine.prefill(rows[:2], batch=2)
    made = [first.token[:, :1], first.token[:, 1:]]
    state = engine.insert(engine.empty(prefix, num_slots=3), [2, 0], prefix)
    state, early = engine.step(state, 4)
    assert (np.asarray(early.part[:, 1]) == NOTHING).all()
    late, third = engine.prefill(rows[2:], batch=1)
    state = engine.insert(state, [1], late)
    state, rest = engine.step(state, 11)

    for row, slot in ((0, 2), (1, 0)):
        both = np.concatenate([made[row][:, 0], early.token[:, slot], rest.token[:, slot]])
        assert both[:12].tolist() == expected[row]
    assert [*third.token[:, 0].tolist(), *rest.token[:, 1].tolist()] == expected[2]
    assert (np.asarray(rest.part[7:, [0, 2]]) == NOTHING).all()  # 1 + 4 + 7 = 12


def test_a_row_can_be_ended_and_its_slot_used_again(dense):
    rows = prepare(dense.model, dense.tok, PROMPTS[:2], [CONFIG] * 2, None)
    expected = generate(*dense, [PROMPTS[1]], [CONFIG])[0].tokens
    engine = Engine.of(*dense, rows, mesh=None)
    prefix, _ = engine.prefill(rows[:1], batch=1)
    state = engine.insert(engine.empty(prefix, num_slots=2), [0], prefix)
    state, _ = engine.step(state, 2)
    state = engine.finish(state, [0])
    state, nothing = engine.step(state, 2)
    assert (np.asarray(nothing.part) == NOTHING).all()
    prefix, first = engine.prefill(rows[1:], batch=1)
    state = engine.insert(state, [0], prefix)
    state, rest = engine.step(state, 11)
    assert [*first.token[:, 0].tolist(), *rest.token[:, 0].tolist()] == expected


def test_a_filler_reaches_no_slot(dense):
    """A prefill of more rows than are asked for; the rows beside them stay as they are."""
    rows = prepare(dense.model, dense.tok, PROMPTS, [CONFIG] * 3, None)
    engine = Engine.of(*dense, rows, mesh=None)
    prefix, _ = engine.prefill(rows[:1], batch=1)
    state = engine.insert(engine.empty(prefix, num_slots=2), [0], prefix)
    before = jax.tree.map(np.asarray, (state.rows.token[0], state.cache.positions[0], state.rows.counts[0]))
    more, _ = engine.prefill(rows[1:2], batch=4)
    state = engine.insert(state, [1], more)
    after = (state.rows.token[0], state.cache.positions[0, : before[1].size], state.rows.counts[0])
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, after))
