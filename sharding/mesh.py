"""Meshes: how the devices at hand are arranged along the five axes."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from qwen3_jax.sharding.rules import DEFAULT_RULES, MESH_AXES, Rules


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the axes; at most one is -1 and takes the devices that the others leave.

    Attributes:
      slices: groups of devices that only the data-centre network joins (several TPU slices); they are laid along
        `slice_axis`, so that only that axis crosses the slow network.
      slice_axis: "data" or "fsdp".
      rules: rules that differ from `DEFAULT_RULES`.
    """

    data: int = 1
    fsdp: int = 1
    expert: int = 1
    context: int = 1
    tensor: int = 1
    slices: int = 1
    slice_axis: str = "data"
    rules: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for axis in MESH_AXES:
            size = getattr(self, axis)
            if size < 1 and size != -1:
                raise ValueError(f"mesh axis {axis!r} must be a positive size or -1, got {size!r}: correct it")
        if sum(getattr(self, axis) == -1 for axis in MESH_AXES) > 1:
            raise ValueError(f"one mesh axis may be -1, got {self.sizes}: give all but one a size")
        if self.slices < 1:
            raise ValueError(f"slices must be positive, got {self.slices}: correct it")
        if self.slice_axis not in ("data", "fsdp"):
            raise ValueError(f"slice_axis must be 'data' or 'fsdp', got {self.slice_axis!r}: correct it")
        DEFAULT_RULES.override(self.rules)  # a wrong rule shows here

    @property
    def sizes(self) -> dict[str, int]:
        return {axis: getattr(self, axis) for axis in MESH_AXES}

    @property
    def table(self) -> Rules:
        return DEFAULT_RULES.override(self.rules)

    def resolve(self, num_devices: int) -> dict[str, int]:
        """Sizes with -1 filled in.

        In:  fsdp=-1, tensor=2 and 8 devices     Out: {"data": 1, "fsdp": 4, "expert": 1, "context": 1, "tensor": 2}

        Raises:
          ValueError: the sizes do not multiply to the number of devices.
        """
        sizes = self.sizes
        fixed = math.prod(size for size in sizes.values() if size != -1)
        for axis, size in sizes.items():
            if size == -1:
                sizes[axis] = num_devices // fixed
        if math.prod(sizes.values()) != num_devices:
            asked = ", ".join(f"{axis}={size}" for axis, size in self.sizes.items() if size != 1) or "one device"
            raise ValueError(
                f"a mesh must use every device, got {asked} (a product of {fixed}) for {num_devices} devices: change "
                "a size, or let one be -1"
            )
        if sizes[self.slice_axis] % self.slices:
            raise ValueError(
                f"mesh axis {self.slice_axis!r} must divide over {self.slices} slices, got {sizes[self.slice_axis]}: "
                "change its size or slice_axis"
            )
        return sizes

    def build(self, devices: Sequence[Any] | None = None) -> Mesh:
        """The mesh over `devices`, by default all that JAX has.

        Devices are arranged so that the last axes, which talk most, are neighbours in the network.
        """
        devices = jax.devices() if devices is None else devices
        sizes = self.resolve(len(devices))
        shape = tuple(sizes[axis] for axis in MESH_AXES)
        return Mesh(self._arrange(shape, devices), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))

    def _arrange(self, shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
        if self.slices > 1:
            across = tuple(self.slices if axis == self.slice_axis else 1 for axis in MESH_AXES)
            within = tuple(size // slices for size, slices in zip(shape, across, strict=True))
            if any(getattr(device, "slice_index", None) is not None for device in devices):
                return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
            # Devices that know of no slices (CPU, GPU): consecutive runs of them stand for slices.
            runs = np.asarray(devices, dtype=object).reshape(self.slices, *within)
            return np.concatenate(list(runs), axis=MESH_AXES.index(self.slice_axis))
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def make_mesh(
    data: int = 1,
    fsdp: int = 1,
    expert: int = 1,
    context: int = 1,
    tensor: int = 1,
    *,
    slices: int = 1,
    slice_axis: str = "data",
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """A mesh of the five axes; one size may be -1 and takes what is left.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    config = MeshConfig(
        data=data, fsdp=fsdp, expert=expert, context=context, tensor=tensor, slices=slices, slice_axis=slice_axis
    )
    return config.build(devices)


def parse_mesh(text: str) -> MeshConfig:
    """From `fsdp=8,tensor=2`, or from a YAML file that holds the fields of `MeshConfig`. Rules are written as in
    `expert=8,rules.embed=null`.

    Raises:
      FileNotFoundError: it is neither.
      ValueError: an unknown field or a size that is none.
    """
    if "=" not in text:
        path = Path(text)
        if not path.is_file():
            raise FileNotFoundError(f"{text} must be a YAML file or sizes such as fsdp=8,tensor=2: no such file")
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if not isinstance(values, dict):
            raise ValueError(f"{text} must hold a mapping, got {type(values).__name__}: correct the file")
        return mesh_config(values)
    fields: dict[str, Any] = {}
    for part in (part for part in text.split(",") if part):
        key, _, value = part.partition("=")
        if key.strip() in fields:
            raise ValueError(f"a mesh must have {key.strip()} once, got it twice in {text}: remove one")
        fields[key.strip()] = yaml.safe_load(value)
    rules = {key.removeprefix("rules."): fields.pop(key) for key in list(fields) if key.startswith("rules.")}
    return mesh_config(fields | ({"rules": rules} if rules else {}))


def mesh_config(values: Mapping[str, Any]) -> MeshConfig:
    """From the fields as a mapping.

    Raises:
      ValueError: an unknown field, or a size that is none.
    """
    known = [field.name for field in dataclasses.fields(MeshConfig)]
    for key in values:
        if key not in known:
            raise ValueError(f"a mesh has the fields {', '.join(known)}, got {key!r}: correct it")
    for axis in (*MESH_AXES, "slices"):
        if type(values.get(axis, 1)) is not int:
            raise ValueError(f"mesh axis {axis!r} must be a positive size or -1, got {values[axis]!r}: correct it")
    return MeshConfig(**values)


def as_auto(mesh: Mesh) -> Mesh:
    """The same devices with Auto axes, which is what this project's programs are written for; axes that are missing
    are added with size 1.

    Raises:
      ValueError: an axis that is none of the five.
    """
    unknown = [axis for axis in mesh.axis_names if axis not in MESH_AXES]
    if unknown:
        raise ValueError(f"a mesh must have axes of {MESH_AXES}, got {unknown[0]!r}: use sharding.make_mesh")
    present = [axis for axis in MESH_AXES if axis in mesh.axis_names]
    devices = np.transpose(mesh.devices, [mesh.axis_names.index(axis) for axis in present])
    shape = [mesh.shape.get(axis, 1) for axis in MESH_AXES]
    return Mesh(devices.reshape(shape), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
