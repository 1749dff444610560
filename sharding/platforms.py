"""Which platform the program being traced is for."""

import jax


def target_platform() -> str:
    """ "cpu", "gpu" or "tpu": the platform of the mesh that `jax.set_mesh` has set, else JAX's default.

    A program compiled ahead of time runs elsewhere: on a CPU host, under the mesh of a TPU topology, this is "tpu"
    where `jax.default_backend()` is "cpu". What depends on the platform while tracing asks here.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else str(device.platform)


def has_ragged_exchange() -> bool:
    """Whether `jax.lax.ragged_all_to_all` compiles for the mesh that is set.

    Not for CPU, and not for v5e slices of more than 16 chips: there the TPU compiler answers "Ragged all-to-all is
    currently not supported in limited ICI routing settings" (libtpu 0.0.42; 2x4 and 4x4 pass, as does every slice of
    v5p and v6e that was tried, up to 16x16).
    """
    if target_platform() == "cpu":
        return False
    mesh = jax.sharding.get_abstract_mesh()
    kind = "" if mesh.abstract_device is None else str(mesh.abstract_device.device_kind)
    return not (kind in ("TPU v5 lite", "TPU v5e") and mesh.size > 16)
