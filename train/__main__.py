"""`python -m qwen3_jax.train CONFIG run_dir=DIR key=value ...`"""

import sys

from qwen3_jax.train.run import main

sys.exit(main(sys.argv[1:]))
