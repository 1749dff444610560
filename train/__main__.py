"""`python -m train CONFIG run_dir=DIR key=value ...`"""

import sys

from train.run import main

sys.exit(main(sys.argv[1:]))
