"""Adapters against `peft`: files in both directions, logits, gradients; merged and unmerged; what is never computed."""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qwen3_jax
from qwen3_jax.network.model import Qwen3
from qwen3_jax.parameters.adapters import (
    ALL_LINEAR,
    ATTENTION,
    MLP,
    Lora,
    adapter_tree,
    init_adapters,
    make_lora,
    with_adapters,
)
from qwen3_jax.parameters.specs import ParamSpec, layout_of, restack
from tests.tiny import dense_config, moe_config, random_params

TOKENS = np.random.default_rng(0).integers(0, 97, (2, 11)).astype(np.int32)
LORA = {"r": 3, "lora_alpha": 7.0}


def random_adapters(config: Any, lora: Lora, layout: Any, seed: int = 3) -> Any:
    """Both matrices random: with B at zero nothing would be tested."""
    rng = np.random.default_rng(seed)
    unrolled = jax.tree.map(
        lambda spec: jnp.asarray(rng.normal(size=spec.shape) * 0.2, jnp.float32),
        adapter_tree(config, lora, "unrolled"),
        is_leaf=lambda leaf: isinstance(leaf, ParamSpec),
    )
    if layout == "unrolled":
        return unrolled
    out, at = {}, 0
    for index, (_, length) in enumerate(config.segments):
        layers = [unrolled[f"layers_{at + offset}"] for offset in range(length)]
        out[f"segments_{index}"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
        at += length
    return out


def logits(model: Qwen3, params: Any, adapters: Any = None) -> np.ndarray:
    return np.asarray(apply(model, {"params": with_adapters(params, adapters)}).logits)


@partial(jax.jit, static_argnums=0)
def apply(model: Qwen3, variables: Any) -> Any:
    return model.apply(variables, jnp.asarray(TOKENS))


# --- the model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["stacked", "unrolled"])
def test_fresh_adapters_change_nothing_and_are_drawn_as_peft_draws_them(layout) -> None:
    config = dense_config(hidden_size=64)
    lora = make_lora(config, target_modules=ALL_LINEAR, **LORA)
    params, adapters = random_params(config, layout), init_adapters(config, lora, layout, jax.random.key(0))
    assert layout_of(adapters) == layout
    model = Qwen3(config, lora=lora)
    np.testing.assert_array_equal(logits(model, params, adapters), logits(Qwen3(config), params))
    for path, leaf in jax.tree_util.tree_leaves_with_path(adapters):
        bound = leaf.shape[-1] ** -0.5
        if path[-1].key.endswith("_B"):
            assert not np.any(leaf)
        else:
            assert 0.85 * bound < np.abs(leaf).max() <= bound
            np.testing.assert_allclose(np.std(leaf), bound / 3**0.5, rtol=0.2)


def test_layouts_agree_and_merged_is_unmerged() -> None:
    config = dense_config()
    lora = make_lora(config, target_modules=ALL_LINEAR, use_rslora=True, **LORA)
    assert lora.scale == 7 / 3**0.5
    model, seen = Qwen3(config, lora=lora), []
    for layout in ("stacked", "unrolled"):
        params, adapters = random_params(config, layout), random_adapters(config, lora, layout)
        seen.append(logits(model, params, adapters))
        plain, merged = qwen3_jax.merge_adapters(model, params, adapters)
        assert plain.lora is None
        np.testing.assert_allclose(logits(plain, merged), seen[-1], atol=2e-5)
        assert np.abs(seen[-1] - logits(plain, params)).max() > 0.1
    np.testing.assert_allclose(seen[0], seen[1], atol=2e-5)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_no_matrix_of_the_size_of_a_weight_is_ever_computed(remat) -> None:
    """Neither W + B A in the forward pass nor the frozen weights' gradients in the backward pass."""
    config = dense_config()
    lora = make_lora(config, target_modules=ALL_LINEAR, **LORA)
    model = Qwen3(config, lora=lora, remat=remat)
    params, adapters = random_params(config), init_adapters(config, lora, "stacked", jax.random.key(0))

    def loss(adapters: Any) -> Any:
        return jnp.sum(model.apply({"params": with_adapters(params, adapters)}, jnp.asarray(TOKENS)).hidden ** 2)

    def products(jaxpr: Any) -> Any:
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                yield equation.outvars[0].aval.shape
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    yield from products(getattr(inner, "jaxpr", inner))

    shapes = set(products(jax.make_jaxpr(jax.grad(loss))(adapters).jaxpr))
    weights = {leaf.shape[1:] for leaf in jax.tree.leaves(params["segments_0"]) if leaf.ndim == 3}
    assert (lora.r, config.hidden_size) in shapes  # the gradient of an A
    assert weights
    assert not {shape[::step] for shape in shapes for step in (1, -1)} & weights


def test_a_choice_that_can_not_be_is_refused_in_one_line() -> None:
    dense, moe = dense_config(), moe_config(num_hidden_layers=3, mlp_only_layers=(0,))
    for config, values, words in [
        (dense, {"target_modules": ["q_prj"]}, "target_modules must be 'all-linear' or some of .* got q_prj"),
        (dense, {"target_modules": []}, "got none"),
        (dense, {"target_modules": ALL_LINEAR, "r": 0}, "r must be a positive rank, got 0"),
        (dense, {"target_modules": ALL_LINEAR, "lora_alpha": 0.0}, "lora_alpha must be positive"),
        (moe, {"target_modules": ALL_LINEAR}, "mixture of experts must be of q_proj.*got down_proj, gate_proj, up"),
        (moe, {"target_modules": ["q_proj", "up_proj"]}, "got up_proj: experts have no adapters"),
    ]:
        with pytest.raises(ValueError, match=words) as error:
            make_lora(config, **(LORA | values))
        assert "\n" not in str(error.value)
    lora = make_lora(dense, target_modules=MLP, **LORA)
    params, adapters = random_params(dense), random_adapters(dense, lora, "stacked")
    with pytest.raises(ValueError, match="parameters with adapters need a model with lora, got lora=None"):
        logits(Qwen3(dense), params, adapters)
    unrolled = random_params(dense, "unrolled"), random_adapters(dense, lora, "unrolled")
    with pytest.raises(ValueError, match=r"layers_0/gate_proj_lora_A must have shape \(4, 32\), got \(3, 32\)"):
        logits(Qwen3(dense, lora=dataclasses.replace(lora, r=4)), *unrolled)


# --- peft ----------------------------------------------------------------------------------------------------------

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
from tests.qwen3_jax.network import hf_reference  # noqa: E402

# peft asks transformers for an attribute under its old name.
old_name = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
VARIANTS = {"tied": ALL_LINEAR, "untied": ["down_proj", "v_proj"], "moe": list(ATTENTION)}


@pytest.fixture(scope="module", params=VARIANTS)
def peers(request, tmp_path_factory) -> tuple[str, Path, Qwen3, Any]:
    """A base of transformers, saved; the same in ours."""
    directory = tmp_path_factory.mktemp(request.param)
    hf_reference.save(hf_reference.build(request.param), directory)
    return request.param, directory, *qwen3_jax.from_pretrained(directory, "float32")


def peft_model(variant: str, **changes: Any) -> Any:
    values = {"target_modules": VARIANTS[variant], "task_type": "CAUSAL_LM", "use_rslora": variant == "untied"} | LORA
    model = peft.get_peft_model(hf_reference.build(variant), peft.LoraConfig(**(values | changes)))
    torch.manual_seed(5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(0.2 * torch.randn_like(weight))
    return model


@old_name
def test_pefts_adapters_load_in_ours(peers, tmp_path) -> None:
    variant, _, model, params = peers
    theirs = peft_model(variant)
    theirs.save_pretrained(tmp_path)
    model, adapters = qwen3_jax.load_adapters(tmp_path, model, params)
    expected = hf_reference.logits(theirs, TOKENS)
    np.testing.assert_allclose(logits(model, params, adapters), expected, atol=2e-5)
    np.testing.assert_allclose(logits(*qwen3_jax.merge_adapters(model, params, adapters)), expected, atol=2e-5)


@old_name
def test_ours_load_in_peft(peers, tmp_path) -> None:
    variant, base, model, params = peers
    layout = "unrolled" if variant == "untied" else "stacked"
    lora = make_lora(model.config, target_modules=VARIANTS[variant], use_rslora=variant == "untied", **LORA)
    adapters = random_adapters(model.config, lora, layout)
    model = model.clone(lora=lora)
    qwen3_jax.save_adapters(tmp_path, model, adapters, base=str(base))
    theirs = peft.PeftModel.from_pretrained(hf_reference.load(base), tmp_path)
    params = params if layout == "unrolled" else restack(params, model.config)
    np.testing.assert_allclose(hf_reference.logits(theirs, TOKENS), logits(model, params, adapters), atol=2e-5)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    again, read = qwen3_jax.load_adapters(tmp_path, model.clone(lora=None), params)
    assert again.lora == lora
    jax.tree.map(np.testing.assert_array_equal, read, adapters)


@old_name
def test_gradients_are_pefts(peers, tmp_path) -> None:
    variant, _, model, params = peers
    theirs = peft_model(variant)
    theirs.save_pretrained(tmp_path)
    model, adapters = qwen3_jax.load_adapters(tmp_path, model, params)
    ids = torch.tensor(TOKENS.astype(np.int64))
    theirs(input_ids=ids, labels=ids).loss.backward()
    found = {name: weight.grad.numpy() for name, weight in theirs.named_parameters() if weight.grad is not None}

    def loss(adapters: Any) -> Any:
        out = model.apply({"params": with_adapters(params, adapters)}, jnp.asarray(TOKENS)).logits[:, :-1]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(out), jnp.asarray(TOKENS[:, 1:, None]), axis=-1)
        return -jnp.mean(chosen)

    grads = jax.jit(jax.grad(loss))(adapters)
    assert len(found) == len(jax.tree.leaves(grads))
    for path, gradient in jax.tree_util.tree_leaves_with_path(grads):
        layer, name = path[0].key.removeprefix("layers_"), path[1].key
        block = "self_attn" if name[0] in "qkvo" else "mlp"
        target, part = name.rsplit("_lora_", 1)
        expected = found[f"base_model.model.model.layers.{layer}.{block}.{target}.lora_{part}.default.weight"]
        assert np.abs(gradient - expected).max() <= 1e-4 * np.abs(expected).max(), name


@old_name
def test_what_is_not_plain_lora_of_this_model_is_refused(peers, tmp_path) -> None:
    variant, _, model, params = peers
    if variant != "untied":  # one is enough
        return
    cases = [
        ({"use_dora": True}, "use_dora=True: merge the adapter with peft"),
        ({"layers_to_transform": [1], "target_modules": ["q_proj"]}, r"layers_to_transform=\[1\]"),
        ({"rank_pattern": {"v_proj": 2}}, "rank_pattern="),
        ({"target_modules": ["q_proj", "lm_head"]}, r"lm_head\.lora_A\.weight: expected none"),
    ]
    for index, (changes, words) in enumerate(cases):
        directory = tmp_path / str(index)
        peft_model(variant, **changes).save_pretrained(directory, save_embedding_layers=False)
        with pytest.raises(ValueError, match=words):
            qwen3_jax.load_adapters(directory, model, params)
    with pytest.raises(FileNotFoundError, match=r"must hold adapter_config\.json, got none"):
        qwen3_jax.load_adapters(tmp_path, model, params)
    with pytest.raises(ValueError, match="must have lora to save its adapters"):
        qwen3_jax.save_adapters(tmp_path / "none", model, {})
