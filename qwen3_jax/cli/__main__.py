"""`python -m qwen3_jax.cli`, the same as `qwen3-jax`."""

import sys

from qwen3_jax.cli import main

sys.exit(main())
