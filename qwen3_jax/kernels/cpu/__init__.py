"""What XLA:CPU needs spelled in its own way. Only `qwen3_jax.kernels` imports from here."""
