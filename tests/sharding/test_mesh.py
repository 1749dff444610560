"""Meshes: sizes, what is filled in, how slices are laid, and what is refused."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from qwen3_jax.sharding import MESH_AXES, MeshConfig, as_auto, make_mesh, parse_mesh


def test_a_mesh_has_all_five_axes_and_they_are_auto():
    mesh = make_mesh(fsdp=2, expert=2, tensor=2)
    assert mesh.axis_names == MESH_AXES
    assert dict(mesh.shape) == {"data": 1, "fsdp": 2, "expert": 2, "context": 1, "tensor": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert sorted(device.id for device in mesh.devices.flat) == list(range(8))


def test_minus_one_takes_what_is_left():
    assert MeshConfig(fsdp=-1, tensor=2).resolve(8) == {"data": 1, "fsdp": 4, "expert": 1, "context": 1, "tensor": 2}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"fsdp": 3}, r"must use every device, got fsdp=3 \(a product of 3\) for 8 devices"),
        ({"fsdp": -1, "tensor": 3}, r"got fsdp=-1, tensor=3 \(a product of 3\) for 8 devices"),
        ({"fsdp": -1, "tensor": -1}, r"one mesh axis may be -1"),
        ({"fsdp": 0}, r"mesh axis 'fsdp' must be a positive size or -1, got 0"),
        ({"data": 2, "fsdp": 4, "slices": 4}, r"'data' must divide over 4 slices, got 2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_numbers(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(**sizes) if "slices" in sizes or -1 not in sizes.values() else MeshConfig(**sizes).build()


def test_slices_lie_along_their_axis_only():
    """The devices of a slice stand together: only steps along `data` cross from one to the other."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2, slices=2)
    ids = np.vectorize(lambda device: device.id)(mesh.devices).reshape(2, 4)
    assert set(ids[0]) == {0, 1, 2, 3}
    assert set(ids[1]) == {4, 5, 6, 7}


def test_from_text_and_from_a_file(tmp_path):
    assert parse_mesh("fsdp=8,tensor=2") == MeshConfig(fsdp=8, tensor=2)
    whole = parse_mesh("expert=8,rules.embed=null,rules.vocab=fsdp")
    assert whole == MeshConfig(expert=8, rules={"embed": None, "vocab": "fsdp"})
    path = tmp_path / "mesh.yaml"
    path.write_text("fsdp: -1\nrules:\n  embed: fsdp\n")
    config = parse_mesh(str(path))
    assert config.fsdp == -1
    assert config.table["embed"] == "fsdp"
    assert hash(config.table) == hash(MeshConfig(rules={"embed": "fsdp"}).table)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("fdsp=8", ValueError, "a mesh has the fields .* got 'fdsp'"),
        ("fsdp=many", ValueError, "'fsdp' must be a positive size or -1, got 'many'"),
        ("fsdp=8,rules.embedd=null", ValueError, "got 'embedd': did you mean 'embed'"),
        ("nowhere.yaml", FileNotFoundError, "must be a YAML file or sizes such as"),
    ],
)
def test_what_is_no_mesh_is_refused(text, error, message):
    with pytest.raises(error, match=message):
        parse_mesh(text)


def test_rules_that_name_nothing_are_refused():
    with pytest.raises(ValueError, match="got 'embedd': did you mean 'embed'"):
        MeshConfig(rules={"embedd": "fsdp"})
    with pytest.raises(ValueError, match="got 'tp' for 'embed'"):
        MeshConfig(rules={"embed": "tp"})


def test_another_mesh_is_taken_with_auto_axes():
    explicit = jax.make_mesh((2, 4), ("tensor", "fsdp"))
    mesh = as_auto(explicit)
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert (mesh.shape["fsdp"], mesh.shape["tensor"]) == (4, 2)
    assert mesh.devices[0, 1, 0, 0, 0] == explicit.devices[0, 1]
    with pytest.raises(ValueError, match="got 'model'"):
        as_auto(jax.make_mesh((8,), ("model",)))
