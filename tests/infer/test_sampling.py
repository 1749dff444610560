"""Sampling: what is kept equals transformers' own warpers, what is drawn follows it, and no row sees its neighbours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from qwen3_jax.infer import sampling
from qwen3_jax.infer.penalties import History, penalize
from qwen3_jax.infer.sampling import best_logits, first_largest, process_logits, sample, sampling_log_probs
from qwen3_jax.infer.sampling_params import SamplingParams, sampling_params

THINKING = {"temperature": 0.6, "top_k": 20, "top_p": 0.95}
ANSWERING = {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "presence_penalty": 1.5}


def rows_of(*rows: dict) -> SamplingParams:
    return sampling_params(rows)


def repeated(row: dict, batch: int) -> SamplingParams:
    return rows_of(*[row] * batch)


def having(seen: jax.Array) -> History:
    """Rows that have generated each of the tokens `seen` once."""
    batch = seen.shape[0]
    return History(
        counts=jnp.asarray(seen, jnp.int32),
        prompt=jnp.zeros(seen.shape, bool),
        generated=jnp.zeros(batch, jnp.int32),
        ends=jnp.full((batch, 8), -1, jnp.int32),
    )


def none_seen(logits: jax.Array) -> History:
    return having(jnp.zeros(logits.shape, bool))


def all_seen(logits: jax.Array) -> History:
    return having(jnp.ones(logits.shape, bool))


def keys_of(batch: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), batch)


_draw = jax.jit(sample, static_argnames="valid_vocab")
_process = jax.jit(process_logits, static_argnames="valid_vocab")


def draw(*args: jax.Array, valid_vocab: int) -> jax.Array:
    return _draw(*args, valid_vocab=valid_vocab)[0]


def process(logits: jax.Array, history: History, params: SamplingParams, valid_vocab: int | None = None) -> jax.Array:
    return _process(logits, history, params, valid_vocab=logits.shape[1] if valid_vocab is None else valid_vocab)


def test_processed_logits_leave_out_what_is_padding_of_the_vocabulary():
    """A padding row of the embedding that has the largest logit is never drawn, so it must not count in log-probs."""
    logits = jnp.asarray([[1.0, 2.0, 0.0, 50.0]] * 2)
    params = rows_of({}, {"temperature": 0.0})
    kept = process(logits, none_seen(logits), params, valid_vocab=3)
    expected = np.log(np.exp([1.0, 2.0, 0.0]) / np.exp([1.0, 2.0, 0.0]).sum())
    np.testing.assert_allclose(jax.nn.log_softmax(kept)[0, :3], expected, rtol=1e-6)
    assert kept[0, 3] == -jnp.inf
    assert np.isfinite(kept[1]).tolist() == [False, True, False, False]


def vectors(count: int, vocab: int, seed: int) -> np.ndarray:
    """Logits of every kind in turn: smooth, full of ties (0.0 and -0.0 among them), bfloat16, constant, masked."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, vocab)) * rng.choice([0.3, 1.0, 3.0, 8.0], size=(count, 1))
    kind = np.arange(count) % 8
    x[kind == 1] = np.round(x[kind == 1])
    x[kind == 2] = np.round(x[kind == 2] * 2) / 2
    x[kind == 3] = np.asarray(jnp.asarray(x[kind == 3], jnp.bfloat16).astype(jnp.float32))
    x[kind == 4] = np.where(rng.random(x[kind == 4].shape) < 0.02, 1.0, -0.5)
    x[kind == 5] = np.where(np.arange(count)[kind == 5, None] % 16 < 8, 1.25, np.round(x[kind == 5] / 4))
    x[kind == 6] = np.where(rng.random(x[kind == 6].shape) < 0.9, -np.inf, np.round(x[kind == 6]))
    return x.astype(np.float32)


def settings(count: int, vocab: int, seed: int) -> list[dict]:
    rng = np.random.default_rng(seed)

    def one() -> dict:
        return {
            "temperature": float(rng.choice([0.1, 0.6, 0.7, 1.0, 1.3, 2.0, rng.uniform(0.2, 3)])),
            "top_k": int(rng.choice([0, 0, 1, 2, 5, 20, 64, 100, vocab, vocab + 7])),
            "top_p": float(rng.choice([1.0, 0.95, 0.9, 0.8, 0.5, 0.25, 0.1, rng.uniform(0.01, 1)])),
            "min_p": float(rng.choice([0.0, 0.0, 0.05, 0.1, 0.5, 1.0, rng.uniform(0, 1)])),
        }

    return [one() for _ in range(count)]


def log_probs_of_transformers(logits: np.ndarray, rows: list[dict]) -> np.ndarray:
    torch = pytest.importorskip("torch")
    hf = pytest.importorskip("transformers")
    out = []
    for row, values in zip(torch.tensor(logits)[:, None], rows, strict=True):
        warpers = hf.LogitsProcessorList([hf.TemperatureLogitsWarper(values["temperature"])])
        if values["top_k"]:
            warpers.append(hf.TopKLogitsWarper(values["top_k"]))
        if values["top_p"] < 1:
            warpers.append(hf.TopPLogitsWarper(values["top_p"]))
        if values["min_p"]:
            warpers.append(hf.MinPLogitsWarper(values["min_p"]))
        out.append(torch.log_softmax(warpers(None, row), -1)[0].numpy())
    return np.stack(out)


def our_log_probs(logits: np.ndarray, rows: list[dict]) -> np.ndarray:
    kept = process(jnp.asarray(logits), none_seen(logits), rows_of(*rows))
    return np.asarray(jax.nn.log_softmax(kept, -1))


@pytest.mark.parametrize(("count", "vocab"), [(1000, 777), (8, 151_936)])
def test_log_probs_equal_transformers(count: int, vocab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    logits, rows = vectors(count, vocab, 1), settings(count, vocab, 2)
    ours = our_log_probs(logits, rows)

    # As it stands: torch.sort may put equal logits in any order, so top-p may keep others of them, but as many.
    theirs = log_probs_of_transformers(logits, rows)
    np.testing.assert_allclose(np.sort(ours), np.sort(theirs), rtol=2e-6, atol=4e-6)
    row, token = np.nonzero(np.isfinite(ours) != np.isfinite(theirs))
    lowest = np.where(np.isfinite(ours), logits, np.inf).min(1)
    assert np.array_equal(logits[row, token], lowest[row])

    # With a stable sort: the same tokens.
    monkeypatch.setattr(torch, "sort", lambda x, descending: torch.Tensor.sort(x, descending=descending, stable=True))
    theirs = log_probs_of_transformers(logits, rows)
    assert np.array_equal(np.isfinite(ours), np.isfinite(theirs))
    np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=4e-6)


def test_presence_penalty_is_subtracted_once_before_temperature() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 100)).astype(np.float32)
    seen = rng.random((3, 100)) < 0.3
    rows = [{"presence_penalty": p, "temperature": t} for p, t in [(1.5, 0.5), (0.0, 2.0), (-0.5, 1.0)]]
    ours = process(jnp.asarray(logits), having(seen), rows_of(*rows))
    expected = np.stack(
        [(x - r["presence_penalty"] * s) / r["temperature"] for x, s, r in zip(logits, seen, rows, strict=True)]
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)


def test_greedy_is_argmax_after_the_penalty_and_the_first_among_equals() -> None:
    logits = jnp.asarray([[0.0, 2.0, 2.0, 1.9], [3.0, 1.0, 1.0, 3.0], [0.0, 2.5, 2.0, 1.0]])
    seen = jnp.asarray([[False, True, False, False], [True, True, True, True], [False, True, True, True]])
    greedy = {"temperature": 0.0, "top_k": 2, "top_p": 0.3}
    params = rows_of(greedy | {"presence_penalty": 0.2}, greedy, greedy | {"presence_penalty": 2.6})
    assert draw(logits, having(seen), params, keys_of(3), valid_vocab=4).tolist() == [2, 0, 0]
    kept = process(logits, having(seen), params)
    assert np.isfinite(kept).tolist() == [
        [False, False, True, False],
        [True, False, False, False],
        [True, False, False, False],
    ]


@pytest.mark.parametrize("vocab", [3, 128, 1000])
def test_first_largest_is_argmax(vocab: int) -> None:
    x = vectors(32, vocab, 3)
    x[:, 0] = np.maximum(x[:, 0], -3.0)  # at least one finite
    assert np.array_equal(jax.jit(first_largest)(jnp.asarray(x)), x.argmax(1))


@pytest.mark.parametrize(("vocab", "size"), [(300, 300), (300, 20), (1000, 7), (6400, 80)])
def test_best_logits_are_ordered_by_value_and_then_by_token(vocab: int, size: int) -> None:
    x = vectors(32, vocab, 4)
    x[x == 0] = 0.0
    order = np.stack([np.lexsort((np.arange(vocab), row))[::-1][:size] for row in x])
    values, tokens = jax.jit(best_logits, static_argnums=1)(jnp.asarray(x), size)
    assert np.array_equal(tokens, order)
    assert np.array_equal(values, np.take_along_axis(x, order, 1))


MIXED = [
    THINKING,
    {"temperature": 1.0},
    {"temperature": 1.2, "top_p": 0.9},
    {"temperature": 1.0, "min_p": 0.02},
    {"temperature": 0.9, "top_k": 300, "top_p": 0.97},
    {"temperature": 2.0, "top_k": 64, "min_p": 0.05},
    ANSWERING | {"temperature": 0.0},
    ANSWERING,
]
VOCAB = 700  # with SMALL_TIERS every way through the tiers is taken
SMALL_TIERS = (8, 40)


def test_frequencies_are_the_probabilities_whatever_the_tiers(monkeypatch: pytest.MonkeyPatch) -> None:
    each, rounds = 64, 12
    logits = jnp.asarray(np.random.default_rng(5).normal(size=(1, VOCAB)).astype(np.float32)) * 2
    logits = jnp.broadcast_to(logits, (each * len(MIXED), VOCAB))
    params = rows_of(*[row for row in MIXED for _ in range(each)])
    tokens = []
    for tiers in (SMALL_TIERS, ()):
        monkeypatch.setattr(sampling, "TIERS", tiers)
        run = jax.jit(lambda *args: sample(*args, VOCAB)[0])
        keys = [keys_of(len(logits), seed) for seed in range(rounds)]
        tokens.append(np.stack([run(logits, none_seen(logits), params, key) for key in keys]))
    assert np.array_equal(*tokens)

    kept = process(logits[::each], none_seen(logits[::each]), jax.tree.map(lambda x: x[::each], params))
    probabilities = np.asarray(jax.nn.softmax(kept, -1), np.float64)
    for i, row in enumerate(MIXED):
        counts = np.bincount(tokens[0][:, i * each : (i + 1) * each].ravel(), minlength=VOCAB)
        expected = probabilities[i] / probabilities[i].sum() * each * rounds
        assert not counts[expected == 0].any(), row
        rare = expected < 8  # one bin together
        counts, expected = (np.append(x[~rare], x[rare].sum()) for x in (counts, expected))
        if len(expected) > 2:  # more than the greedy row's one token
            assert stats.chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 1e-3, row


def test_a_row_depends_on_neither_neighbours_nor_batch_size() -> None:
    """Not a bit of it: eight different rows alone, in any order, and beside rows that need the whole vocabulary."""
    vocab, valid = 1500, 1400
    logits = jnp.asarray(vectors(8, vocab, 7)) + 0.0
    seen = having(np.random.default_rng(8).random((8, vocab)) < 0.1)
    params = rows_of(*MIXED)
    hard = repeated({"temperature": 3.0, "top_k": 1000}, 8)
    pick = jax.jit(lambda rows, at: jax.tree.map(lambda x: x[at], rows))
    for seed in range(2):
        keys = keys_of(8, seed)
        rows = (logits, seen, params, keys)
        together = np.asarray(draw(*rows, valid_vocab=valid))
        shuffled = np.random.default_rng(seed).permutation(8)
        assert np.array_equal(draw(*pick(rows, shuffled), valid_vocab=valid), together[shuffled])
        for i in range(8):
            assert draw(*pick(rows, np.array([i])), valid_vocab=valid).item() == together[i]
            beside = jax.tree.map(lambda x, y: y.at[i].set(x[i]), params, hard)  # noqa: B023
            assert draw(logits, seen, beside, keys, valid_vocab=valid)[i] == together[i]


def test_an_answered_row_never_reaches_a_later_tier(monkeypatch: pytest.MonkeyPatch) -> None:
    vocab, batch = 1500, 8

    def spoiled(x: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
        values, tokens = best_logits(x, size)
        return values, jnp.full_like(tokens, vocab - 1) if size == vocab else tokens

    monkeypatch.setattr(sampling, "best_logits", spoiled)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(batch, vocab)).astype(np.float32))
    logits = logits.at[:, vocab - 1].set(-9.0)
    answered = [THINKING, ANSWERING, {"top_k": 64}, {"temperature": 0.0}, {"temperature": 0.2, "top_p": 0.9}]
    whole = [{"temperature": 3.0, "top_p": 0.9}, {"top_k": 500}, {"temperature": 4.0, "min_p": 0.1}]
    params = rows_of(*answered, *whole)
    token = jax.jit(sample, static_argnums=4)(logits, none_seen(logits), params, keys_of(8), vocab)[0]
    assert (token == vocab - 1).tolist() == [False] * len(answered) + [True] * len(whole)


def test_padding_and_minus_infinity_are_never_drawn() -> None:
    vocab, valid, batch = 1500, 1400, 8
    logits = jnp.zeros((batch, vocab)).at[:, valid:].set(50.0).at[:, 1:valid:2].set(-jnp.inf)
    params = rows_of(*MIXED[:6], {"temperature": 0.0, "presence_penalty": -3.0}, {"temperature": 3.0, "top_k": vocab})
    for seed in range(8):
        token = np.asarray(draw(logits, all_seen(logits), params, keys_of(batch, seed), valid_vocab=valid))
        assert (token < valid).all()
        assert not (token % 2).any()
    token = draw(jnp.full_like(logits, jnp.nan), none_seen(logits), params, keys_of(batch), valid_vocab=valid)
    assert (np.asarray(token) < valid).all()  # garbage in, but no index outside


ASKS = [
    {"repetition_penalty": 1.3},
    {"frequency_penalty": 0.7, "presence_penalty": -0.4},
    {"logit_bias": {3: 2.5, 70: -100.0, 699: 4.0}},
    {"min_tokens": 9},
    {"repetition_penalty": 0.8, "frequency_penalty": -0.3, "logit_bias": {5: 1.0}, "min_tokens": 3},
    {"min_tokens": 4},
    {},
    {"repetition_penalty": 2.0, "temperature": 0.0, "min_tokens": 9},
]


def long_history(vocab: int) -> tuple[History, list[list[int]], list[list[int]]]:
    """For eight rows: five tokens generated by each, some of them twice, and four of the prompt; the end tokens 7 and
    11. As our arrays, and as lists of prompt and answer."""
    rng = np.random.default_rng(1)
    prompts, answers = (rng.integers(0, 40, (8, size)) for size in (4, 5))
    counts, prompt = np.zeros((8, vocab), np.int32), np.zeros((8, vocab), bool)
    np.add.at(counts, (np.arange(8)[:, None], answers), 1)
    prompt[np.arange(8)[:, None], prompts] = True
    ends = jnp.tile(jnp.array([[7, 11, -1]], jnp.int32), (8, 1))
    history = History(jnp.asarray(counts), jnp.asarray(prompt), jnp.full(8, 5, jnp.int32), ends)
    return history, prompts.tolist(), answers.tolist()


def test_penalties_equal_the_processors_of_transformers() -> None:
    torch = pytest.importorskip("torch")
    hf = pytest.importorskip("transformers")
    logits = vectors(8, VOCAB, 9)
    history, prompts, answers = long_history(VOCAB)
    ours = np.asarray(jax.jit(penalize)(jnp.asarray(logits), history, rows_of(*ASKS)))
    for i, asked in enumerate(ASKS):
        processors = hf.LogitsProcessorList()
        if "logit_bias" in asked:
            biases = {(token,): bias for token, bias in asked["logit_bias"].items()}
            processors.append(hf.SequenceBiasLogitsProcessor(biases))
        if "repetition_penalty" in asked:
            processors.append(hf.RepetitionPenaltyLogitsProcessor(asked["repetition_penalty"]))
        expected = processors(torch.tensor([prompts[i] + answers[i]]), torch.tensor(logits[i : i + 1]))
        counts = np.bincount(answers[i], minlength=VOCAB)  # OpenAI's formula; transformers has neither
        once, often = asked.get("presence_penalty", 0.0), asked.get("frequency_penalty", 0.0)
        expected = expected - torch.tensor(counts * often + (counts > 0) * once, dtype=torch.float32)
        if "min_tokens" in asked:
            ids = torch.tensor([prompts[i] + answers[i]])
            expected = hf.MinNewTokensLengthLogitsProcessor(len(prompts[i]), asked["min_tokens"], [7, 11])(
                ids, expected
            )
        np.testing.assert_allclose(ours[i], expected[0], rtol=1e-6, atol=1e-6)
    assert np.isneginf(ours[3, [7, 11]]).all()  # 5 of 9 tokens are there
    assert np.isfinite(ours[5, [7, 11]]).all()  # 4 were asked for


def test_a_row_that_asks_for_nothing_is_the_same_beside_one_that_does() -> None:
    logits, (history, *_) = jnp.asarray(vectors(8, VOCAB, 9)), long_history(VOCAB)
    beside, alone = (jax.jit(penalize)(logits, history, rows_of(*rows)) for rows in (ASKS, [{}] * 8))
    assert np.array_equal(beside[6], logits[6])
    assert np.array_equal(alone, logits)


@pytest.mark.parametrize("tiers", [SMALL_TIERS, ()], ids=["tiers", "whole"])
def test_log_probs_of_tokens_equal_those_of_the_processed_logits(tiers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any token, removed ones included, and of those that are drawn; without the sort of `process_logits`."""
    monkeypatch.setattr(sampling, "TIERS", tiers)
    logits, (history, *_) = jnp.asarray(vectors(8, VOCAB, 12)), long_history(VOCAB)
    params = rows_of(*[{**asked, **row} for asked, row in zip(ASKS, MIXED, strict=True)])
    valid = VOCAB - 10
    expected = np.asarray(jax.nn.log_softmax(process(logits, history, params, valid_vocab=valid), -1))
    look_up = jax.jit(lambda *args: sampling_log_probs(*args, valid))
    rng, order = np.random.default_rng(2), np.argsort(-expected, axis=1)
    edges = (expected > -np.inf).sum(1)[:, None] + np.arange(-2, 2)[None, :]  # around the last token that is kept
    some = [np.take_along_axis(order, np.clip(edge, 0, VOCAB - 1)[:, None], 1)[:, 0] for edge in edges.T]
    for tokens in [*some, *rng.integers(0, VOCAB, (6, 8))]:
        found = look_up(logits, history, params, jnp.asarray(tokens, jnp.int32))
        np.testing.assert_allclose(found, expected[np.arange(8), tokens], rtol=1e-5, atol=1e-5)
    both = jax.jit(lambda *args: sample(*args, valid))
    for seed in range(6):
        token, log_prob = both(logits, history, params, keys_of(8, seed))
        np.testing.assert_allclose(log_prob, expected[np.arange(8), token], rtol=1e-5, atol=1e-5)


def test_one_trace_for_all_values() -> None:
    traces = 0

    @jax.jit
    def run(*args: jax.Array) -> jax.Array:
        nonlocal traces
        traces += 1
        return sample(*args, valid_vocab=300)[0]

    logits = jnp.asarray(vectors(8, 300, 0))
    for i, row in enumerate(MIXED):
        run(logits, none_seen(logits), repeated(row, 8), keys_of(8, i))
    run(logits, all_seen(logits), rows_of(*MIXED), keys_of(8))
    run(logits, all_seen(logits), rows_of(*ASKS), keys_of(8))
    assert traces == 1


def test_the_uniform_numbers_are_below_one_and_fine_near_zero() -> None:
    u = np.asarray(sampling._uniform(keys_of(200_000)))
    assert 0.0 <= u.min() < 2.0**-14
    assert u.max() < 1.0
    assert abs(u.mean() - 0.5) < 0.003
    assert len(np.unique(u[u < 2.0**-9] * 2.0**24 % 1)) > 10  # more bits than float32's usual 23


def test_on_gpu_no_barrier_stands_behind_top_k(monkeypatch: pytest.MonkeyPatch) -> None:
    """XLA's CUDA compiler aborts the process there; elsewhere the barrier keeps XLA:CPU from sorting everything."""
    x = jax.random.normal(jax.random.key(0), (2, 2048))

    def program() -> str:
        return str(jax.make_jaxpr(lambda x: best_logits(x, 80))(x))

    expected = best_logits(x, 80)
    assert "optimization_barrier" in program()
    monkeypatch.setattr(sampling, "target_platform", lambda: "gpu")
    assert "optimization_barrier" not in program()
    jax.tree.map(np.testing.assert_array_equal, best_logits(x, 80), expected)
