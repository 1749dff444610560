"""`python -m train.ablate DIRECTORY`: one run of an ablation, see `train.ablate.worker`."""

import sys

from train.ablate.worker import main

sys.exit(main(sys.argv[1:]))
