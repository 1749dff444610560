"""Which platform the program being traced is for."""

import jax


def target_platform() -> str:
    """ "cpu", "gpu" or "tpu": the platform of the mesh that `jax.set_mesh` has set, else JAX's default.

    A program compiled ahead of time runs elsewhere: on a CPU host, under the mesh of a TPU topology, this is "tpu"
    where `jax.default_backend()` is "cpu". What depends on the platform while tracing asks here.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else str(device.platform)
