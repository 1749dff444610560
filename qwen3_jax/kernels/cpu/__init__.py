"""What XLA:CPU needs spelled in its own way. Nothing outside `qwen3_jax.kernels` imports from here."""
