import pytest
from jax.sharding import PartitionSpec as P

from qwen3_jax import sharding
from qwen3_jax.parameters.specs import ParamSpec, spec_tree
from qwen3_jax.releases import config_names, load_model_config


def leaves(tree):
    for value in tree.values():
        yield from [value] if isinstance(value, ParamSpec) else leaves(value)


def test_each_dimension_takes_the_mesh_axes_of_its_rule():
    assert sharding.logical_to_spec(("layers", "heads", "embed")) == P(None, "tensor", ("fsdp", "expert"))
    assert sharding.logical_to_spec(("batch", "sequence", None)) == P(("data", "fsdp", "expert"), "context", None)
    assert sharding.logical_to_spec(("expert", "expert_mlp", "expert_embed")) == P("expert", "tensor", "fsdp")
    assert sharding.logical_to_spec(()) == P()


def test_another_layout_is_another_table():
    rules = sharding.DEFAULT_RULES.override({"embed": None, "vocab": ("fsdp", "tensor")})
    assert sharding.logical_to_spec(("vocab", "embed"), rules) == P(("fsdp", "tensor"), None)


def test_two_dimensions_on_one_mesh_axis_are_refused():
    with pytest.raises(ValueError, match=r"'tensor' for both 'vocab' and 'heads'"):
        sharding.logical_to_spec(("vocab", "heads"))
    with pytest.raises(ValueError, match=r"'fsdp' for both 'batch' and 'embed'"):
        sharding.logical_to_spec(("batch", "sequence", "embed"))


def test_an_unknown_logical_axis_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"got 'head': did you mean 'heads'\?"):
        sharding.logical_to_spec(("head",))


def test_a_rule_onto_an_unknown_mesh_axis_is_refused():
    with pytest.raises(ValueError, match=r"got 'tp' for 'heads'"):
        sharding.logical_to_spec(("heads",), sharding.Rules({"heads": "tp"}))


@pytest.mark.parametrize("name", config_names())
@pytest.mark.parametrize("layout", ["stacked", "unrolled"])
def test_every_parameter_of_every_release_has_a_layout(name, layout):
    for spec in leaves(spec_tree(load_model_config(name), layout)):
        assert len(sharding.logical_to_spec(spec.axes)) == len(spec.shape)


def test_every_axis_that_is_used_has_a_rule_and_every_rule_is_used(monkeypatch):
    """Traces a dense and a mixed model, with and without a cache, and collects the logical axes that are asked for."""
    import jax

    from qwen3_jax.network.cache import init_cache
    from qwen3_jax.network.model import Qwen3
    from qwen3_jax.parameters import placement as placements
    from qwen3_jax.parameters.adapters import ATTENTION, MLP, Lora, adapter_tree
    from tests.tiny import moe_config, random_params

    asked = {
        axis
        for name in config_names()
        for spec in leaves(spec_tree(load_model_config(name), "stacked"))
        for axis in spec.axes
    }
    adapted = adapter_tree(load_model_config("qwen3-0.6b"), Lora(target_modules=ATTENTION + MLP), "stacked")
    asked.update(axis for spec in leaves(adapted) for axis in spec.axes)
    monkeypatch.setattr(placements, "constrain", lambda x, axes, _: asked.update(axes) or x)
    config = moe_config(mlp_only_layers=(0,), tie_word_embeddings=False)
    model, params = Qwen3(config), random_params(config)
    tokens = jax.ShapeDtypeStruct((2, 4), "int32")
    cache = jax.eval_shape(lambda: init_cache(config, 2, 8, "stacked", "float32"))
    for given in (None, cache):
        jax.eval_shape(lambda p, t, c: model.apply({"params": p}, t, cache=c).logits, params, tokens, given)
    assert asked - {None} == set(sharding.DEFAULT_RULES)
    assert sorted(sharding.DEFAULT_RULES) == sorted(set(sharding.DEFAULT_RULES))
