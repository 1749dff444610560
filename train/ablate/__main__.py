"""`python -m qwen3_jax.train.ablate DIRECTORY`: one run of an ablation, see `qwen3_jax.train.ablate.worker`."""

import sys

from qwen3_jax.train.ablate.worker import main

sys.exit(main(sys.argv[1:]))
