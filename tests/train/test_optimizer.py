"""Schedules by their numbers, Muon matrix by matrix against numpy and torch, and what the step does beside."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.parameters.specs import restack
from qwen3_jax.train.optimizer import decay_mask, make_optimizer, muon_labels, schedule
from qwen3_jax.train.settings import OptimizerConfig
from qwen3_jax.train.state import init_state, state_shardings
from qwen3_jax.train.step import TRACES, make_model, make_step
from tests.tiny import moe_config, random_params
from tests.train.batches import put_batch
from tests.train.test_sharded import packed_batch, relative, settings

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
BETA, RATE, DECAY = 0.9, 0.02, 0.1
MUON = OptimizerConfig(
    name="muon",
    learning_rate=RATE,
    schedule="constant",
    warmup_steps=0,
    weight_decay=DECAY,
    clip_norm=0.0,
    muon_momentum=BETA,
    muon_adam_rate=0.5,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cosine", [0, 0.5, 1, 0.969552, 0.6, 0.2]),  # at 30: 0.2 + 0.8 * (1 + cos(pi / 8)) / 2
        ("linear", [0, 0.5, 1, 0.9, 0.6, 0.2]),
        ("wsd", [0, 0.5, 1, 1, 1, 0.2]),
        ("constant", [0, 0.5, 1, 1, 1, 1]),
    ],
)
def test_schedules(name: Any, expected: list[float]) -> None:
    """100 steps, 20 of them warm-up: at steps 0, 10, 20, 30, 60 and 100."""
    share = {} if name == "constant" else {"final_share": 0.2}
    config = OptimizerConfig(learning_rate=1.0, schedule=name, warmup_steps=20, **share)
    rate = schedule(config, 100)
    with jax.numpy_dtype_promotion("standard"):
        rates = [float(rate(jnp.int32(step))) for step in (0, 10, 20, 30, 60, 100)]
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "constant"])
def test_the_rate_of_every_step_is_that_of_transformers(name: Any) -> None:
    """50 steps, the first (rate zero) and the last (one short of the end) among them; 10 of warm-up, wsd decays in 10
    (to zero: theirs also begins its warm-up at the final share)."""
    torch = pytest.importorskip("torch")
    optimization = pytest.importorskip("transformers.optimization")
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = {
        "cosine": lambda: optimization.get_cosine_with_min_lr_schedule_with_warmup(sgd, 10, 50, min_lr_rate=0.2),
        "linear": lambda: optimization.get_linear_schedule_with_warmup(sgd, 10, 50),
        "wsd": lambda: optimization.get_wsd_schedule(sgd, 10, 10, 50, decay_type="linear"),
        "constant": lambda: optimization.get_constant_schedule_with_warmup(sgd, 10),
    }[name]()
    expected = []
    for _ in range(50):
        expected.append(theirs.get_last_lr()[0])
        sgd.step()
        theirs.step()
    share = {"cosine": {"final_share": 0.2}, "constant": {}}.get(name, {"final_share": 0.0})
    config = OptimizerConfig(learning_rate=1.0, schedule=name, warmup_steps=10, **share)
    with jax.numpy_dtype_promotion("standard"):
        rates = jax.vmap(schedule(config, 50))(jnp.arange(50))
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-6)
    assert rates[0] == 0


def test_wsd_decays_over_its_share() -> None:
    config = OptimizerConfig(learning_rate=1.0, schedule="wsd", warmup_steps=0, decay_share=0.25, final_share=0.0)
    with jax.numpy_dtype_promotion("standard"):
        rates = [float(schedule(config, 40)(jnp.int32(step))) for step in (0, 29, 30, 35, 40)]
    np.testing.assert_allclose(rates, [1, 1, 1, 0.5, 0], atol=1e-6)
    with pytest.raises(ValueError, match="below step 30, where the decay begins, got 30"):
        schedule(dataclasses.replace(config, warmup_steps=30), 40)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"muon_momentum": 0.5}, "muon_momentum has an effect only with optimizer.name=muon"),
        ({"decay_share": 0.5}, "decay_share has an effect only with optimizer.schedule=wsd"),
        ({"schedule": "constant", "final_share": 0.5}, "final_share has an effect only with a schedule that decays"),
        ({"b2": 1.0}, "b2 must be in"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
    ],
)
def test_settings_without_effect_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**values)


def newton_schulz(x: np.ndarray) -> np.ndarray:
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (np.linalg.norm(x) + 1e-8)
    for _ in range(5):
        gram = x @ x.T
        x = COEFFICIENTS[0] * x + (COEFFICIENTS[1] * gram + COEFFICIENTS[2] * gram @ gram) @ x
    return x.T if tall else x


def muon_reference(w: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """One [out, in] matrix, in float64: Nesterov momentum, both terms corrected for their start at 0 as in optax."""
    momentum = np.zeros_like(w)
    for t, g in enumerate(gradients, start=1):
        momentum = BETA * momentum + (1 - BETA) * g
        ahead = BETA * momentum / (1 - BETA ** (t + 1)) + (1 - BETA) * g / (1 - BETA**t)
        direction = newton_schulz(ahead) * max(1.0, w.shape[0] / w.shape[1]) ** 0.5
        w = w - RATE * (direction + DECAY * w)
    return w


def run_muon(params: Any, gradients: list[Any]) -> Any:
    optimizer = make_optimizer(MUON, 100)

    @jax.jit
    def step(params: Any, state: Any, grads: Any, number: jax.Array) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(grads, state, params, step=number)
        return jax.tree.map(jnp.add, params, updates), state

    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(params)
    for number, grads in enumerate(gradients):
        params, state = step(params, state, grads, jnp.int32(number))
    return params


def test_muon_moves_each_matrix_by_itself_and_adamw_the_rest() -> None:
    """Leaves [L, out, in] and [L, E, out, in] against one matrix at a time; embedding and norms against AdamW."""
    config = moe_config(num_hidden_layers=2, vocab_size=16)
    params, first, second = (random_params(config, seed=seed) for seed in (1, 2, 3))
    after = run_muon(params, [first, second])
    leaves = [jax.tree.map(lambda x: np.asarray(x, np.float64), tree) for tree in (params, first, second, after)]
    names = ("q_proj", "o_proj", "router", "experts_gate_proj", "experts_down_proj")
    for name in names:
        start, *gradients, end = (
            tree["segments_0"][name].reshape(-1, *tree["segments_0"][name].shape[-2:]) for tree in leaves
        )
        for i in range(len(start)):
            expected = muon_reference(start[i], [g[i] for g in gradients])
            np.testing.assert_allclose(end[i], expected, rtol=1e-4, atol=1e-5)
    torch = pytest.importorskip("torch")
    for path, decays in ((("embed_tokens",), True), (("segments_0", "q_norm"), False)):
        start, *gradients, end = (tree[path[0]] if len(path) == 1 else tree[path[0]][path[1]] for tree in leaves)
        w = torch.nn.Parameter(torch.tensor(start))
        adamw = torch.optim.AdamW([w], RATE * 0.5, (0.9, 0.98), 1e-8, DECAY if decays else 0.0)
        for g in gradients:
            w.grad = torch.tensor(g)
            adamw.step()
        np.testing.assert_allclose(end, w.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_muon_takes_torchs_first_step() -> None:
    """Later ones differ: torch does not correct the momentum for its start at 0, and iterates in bfloat16."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start, g = (rng.normal(size=(24, 16)).astype(np.float32) for _ in range(2))
    tree = {"layers_0": {"gate_proj": jnp.asarray(start)}}
    ours = run_muon(tree, [{"layers_0": {"gate_proj": jnp.asarray(g)}}])["layers_0"]["gate_proj"]
    w = torch.nn.Parameter(torch.tensor(start))
    w.grad = torch.tensor(g)
    torch.optim.Muon([w], lr=RATE, weight_decay=DECAY, momentum=BETA).step()
    moved = w.detach().numpy() - start
    assert np.linalg.norm(np.asarray(ours) - start - moved) < 0.02 * np.linalg.norm(moved)


def test_layouts_have_the_same_labels_and_the_same_decay() -> None:
    config = moe_config(tie_word_embeddings=False, mlp_only_layers=(0,))
    unrolled = random_params(config, "unrolled")
    for label in (muon_labels, decay_mask):
        names = [
            {(str(path[-1].key), value) for path, value in jax.tree_util.tree_leaves_with_path(label(tree))}
            for tree in (unrolled, restack(unrolled, config))
        ]
        assert names[0] == names[1]
    kinds = {str(path[-1].key): value for path, value in jax.tree_util.tree_leaves_with_path(muon_labels(unrolled))}
    assert {name for name, kind in kinds.items() if kind == "adamw"} == {
        "embed_tokens", "lm_head", "norm", "input_layernorm", "post_attention_layernorm", "q_norm", "k_norm",
    }  # fmt: skip


def test_muon_and_the_average_lie_on_a_mesh_as_the_parameters_do() -> None:
    """Two steps on eight devices are those of one; momenta and average are split as what they belong to, and experts
    stay where they are."""
    batch, runs = packed_batch(512), []
    changes = {"optimizer": {"name": "muon", "warmup_steps": 0, "learning_rate": 0.01}, "ema_decay": 0.5}
    for sizes in ({}, {"fsdp": 2, "expert": 4}):
        config = settings("moe", sizes, **changes)
        mesh = config.mesh.build() if sizes else None
        model = make_model(config, mesh)
        state, step = init_state(model, config, mesh), make_step(model, config, mesh)
        before, traces = jax.tree.map(np.asarray, state.params), TRACES["train_step"]
        with jax.set_mesh(mesh) if mesh is not None else jax.default_device(None):
            placed = put_batch(batch, mesh, model.placement.rules)
            state, _ = step(state, placed)
            first = jax.tree.map(np.asarray, state.params)
            state, metrics = step(state, placed)
        assert TRACES["train_step"] - traces == 1
        runs.append(
            (float(metrics.loss), float(metrics.balance_loss), jax.tree.map(np.asarray, (state.params, state.ema)))
        )
    np.testing.assert_allclose(runs[1][:2], runs[0][:2], rtol=1e-5)
    for got, expected in zip(*(run[2] for run in runs), strict=True):
        assert relative(got, expected) < 2e-4  # Newton-Schulz enlarges what is small in a gradient
    second = jax.tree.map(np.asarray, state.params)
    kept = (2 / 11, 3 / 12)  # by the warm-up
    average = jax.tree.map(lambda a, b: kept[0] * a + (1 - kept[0]) * b, before, first)
    average = jax.tree.map(lambda a, b: kept[1] * a + (1 - kept[1]) * b, average, second)
    assert relative(state.ema, average) < 1e-6
    momentum = state.opt_state[1].inner_states["muon"].inner_state[0].mu["segments_1"]["experts_gate_proj"]
    assert momentum.sharding == state_shardings(model, config, mesh).params["segments_1"]["experts_gate_proj"]
    assert state.ema["segments_1"]["q_proj"].sharding == state.params["segments_1"]["q_proj"].sharding
    with jax.set_mesh(mesh):
        text = step.lower(state, placed).compile().as_text()
    gathered = [line for line in text.splitlines() if " all-gather(" in line and "scale_by_muon" in line]
    assert not [line for line in gathered if "f32[1,8," in line or "f32[2,8," in line]


def test_the_average_follows_a_short_run_and_is_slow_in_a_long_one() -> None:
    """Against float64 sums with the decay min(d, (1 + n) / (10 + n)) at step n, in one compiled program; d = 0.999."""
    config = settings("dense", {}, steps=20_000, ema_decay=0.999, optimizer={"warmup_steps": 0, "schedule": "constant"})
    model = make_model(config, None)
    state, step, batch = init_state(model, config), make_step(model, config), packed_batch(512)
    before = TRACES["train_step"]

    def wide(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: np.array(leaf, np.float64), tree)

    start = expected = wide(state.params)
    for n in range(1, 9):
        state, _ = step(state, batch)
        kept = min(0.999, (1 + n) / (10 + n))
        expected = jax.tree.map(lambda old, new, kept=kept: kept * old + (1 - kept) * new, expected, wide(state.params))
    assert relative(state.ema, expected) < 1e-6

    def distance(one: Any, other: Any) -> float:
        return float(
            np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True)))
        )

    moved = distance(wide(state.params), start)
    assert distance(wide(state.ema), wide(state.params)) < 0.35 * moved  # 0.99 of the way is left without the warm-up
    late = dataclasses.replace(state, step=jnp.int32(15_000), ema=jax.tree.map(jnp.zeros_like, state.ema))
    late, _ = step(late, batch)
    assert relative(late.ema, jax.tree.map(lambda new: 0.001 * new, wide(late.params))) < 1e-4  # 1 - 0.999 in float32
    assert TRACES["train_step"] - before == 1


def test_a_step_that_is_not_finite_is_skipped_where_that_is_asked_for() -> None:
    config = settings("dense", {}, on_non_finite="skip", ema_decay=0.5)
    model = make_model(config, None)
    state, step, batch = init_state(model, config), make_step(model, config), packed_batch(512)
    state, metrics = step(state, batch)
    assert bool(metrics.finite)
    assert int(state.step) == 1
    broken = dataclasses.replace(state, params={**state.params, "norm": state.params["norm"].at[0].set(jnp.nan)})
    kept = jax.tree.map(np.array, broken)
    after, metrics = step(broken, batch)
    assert not bool(metrics.finite)
    assert int(after.step) == 2
    for ours, theirs in zip(
        jax.tree.leaves(after), jax.tree.leaves(dataclasses.replace(kept, step=np.int32(2))), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
