"""`configs/model/` against the published files and the published parameter counts."""

import json
import math

import jax
import jax.numpy as jnp
import pytest
import yaml

from qwen3_jax.config import ModelConfig
from qwen3_jax.network.model import Qwen3
from qwen3_jax.parameters.specs import Layout, num_parameters
from qwen3_jax.paths import configs_path
from qwen3_jax.releases import config_names, load_model_config

# Total and non-embedding parameters: Qwen3 technical report, arXiv 2505.09388, tables 1 and 2, exact as counted from
# the published tensors (tied heads once).
PUBLISHED = {
    "0.6b": (596_049_920, 440_467_456),
    "1.7b": (1_720_574_976, 1_409_410_048),
    "4b": (4_022_468_096, 3_633_511_936),
    "8b": (8_190_735_360, 6_946_075_648),
    "14b": (14_768_307_200, 13_212_482_560),
    "32b": (32_762_123_264, 31_206_298_624),
    "30b-a3b": (30_532_122_624, 29_909_792_768),
    "235b-a22b": (235_093_634_560, 233_848_974_848),
}
ACTIVE = {"30b-a3b": 3_353_032_704, "235b-a22b": 22_190_763_520}
ROPE_THETA_2507 = {"4b": 5e6, "30b-a3b": 1e7, "235b-a22b": 5e6}


def size_of(name: str) -> str:
    return name.removeprefix("qwen3-").removesuffix("-2507").removesuffix("-instruct").removesuffix("-thinking")


def test_every_published_release_is_there():
    hybrid = {f"qwen3-{size}" for size in PUBLISHED}
    split = {f"qwen3-{size}-{kind}-2507" for size in ROPE_THETA_2507 for kind in ("instruct", "thinking")}
    assert set(config_names()) == hybrid | split


def count_initialized(config: ModelConfig, layout: Layout) -> int:
    """Parameters that `init` would make, without making them."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(Qwen3(config, layout=layout).init, jax.random.key(0), tokens)["params"]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name", config_names())
def test_the_model_has_exactly_the_published_number_of_parameters(name):
    config = load_model_config(name)
    total, non_embedding = PUBLISHED[size_of(name)]
    assert count_initialized(config, "stacked") == total
    assert num_parameters(config) == total
    assert num_parameters(config, embedding=False) == non_embedding
    assert num_parameters(config, active=True) == ACTIVE.get(size_of(name), total)


@pytest.mark.parametrize("name", ["qwen3-0.6b", "qwen3-8b", "qwen3-30b-a3b"])  # tied, untied, experts
def test_the_unrolled_layout_holds_the_same_parameters(name):
    assert count_initialized(load_model_config(name), "unrolled") == PUBLISHED[size_of(name)][0]


@pytest.mark.parametrize("name", config_names())
def test_rope_theta_and_context_are_those_of_the_release(name):
    config = load_model_config(name)
    if name.endswith("-2507"):
        assert (config.rope_theta, config.max_position_embeddings) == (ROPE_THETA_2507[size_of(name)], 262_144)
    else:
        assert (config.rope_theta, config.max_position_embeddings) == (1e6, 40_960)


@pytest.mark.parametrize("name", config_names())
def test_the_file_says_what_the_official_config_says(name, shared_dir):
    # One official file stands for both 2507 releases of 30B; of 4B and 235B only the Instruct one is known.
    official = {path.name.removesuffix(".config.json").lower(): path for path in shared_dir.glob("qwen3/configs/*")}
    path = official.get(name.replace("-thinking-", "-instruct-")) or official[f"qwen3-{size_of(name)}-2507"]
    mine = yaml.safe_load((configs_path() / "model" / f"{name}.yaml").read_text())
    theirs = json.loads(path.read_text())
    assert mine == theirs
    assert {key: type(value) for key, value in mine.items()} == {key: type(value) for key, value in theirs.items()}
    assert load_model_config(path) == load_model_config(name)


@pytest.mark.parametrize("name", config_names())
def test_the_first_line_is_the_command_that_uses_the_file(name):
    first, *_ = (configs_path() / "model" / f"{name}.yaml").read_text().splitlines()
    assert first == f"# qwen3-jax inspect --model-config {name}"


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(FileNotFoundError, match=r"got 'Qwen3-0.6': did you mean qwen3-0.6b\?"):
        load_model_config("Qwen3-0.6")
    with pytest.raises(FileNotFoundError, match=r"got 'missing/other.yaml'"):
        load_model_config("missing/other.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [1", "must be YAML"), ("- 1\n", "must hold a mapping"), ("model_type: llama\n", "model_type must be one of")],
)
def test_a_file_that_is_no_config_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_model_config(path)
    assert "\n" not in str(error.value)


def test_a_number_without_a_dot_is_a_number(tmp_path):
    text = (configs_path() / "model" / "qwen3-0.6b.yaml").read_text().replace("1.0e-6", "1e-6")
    path = tmp_path / "config.yaml"
    path.write_text(text.replace("rope_theta: 1000000", "rope_theta: 1e6"))
    assert load_model_config(path) == load_model_config("qwen3-0.6b")
