"""The command line for weights from elsewhere: see `gkd_jax.training.imported`.

python -m gkd_jax.import_weights WEIGHTS --model MODEL --dataset DATASET --workdir DIR
"""

import sys

from gkd_jax.training.imported import main

if __name__ == "__main__":
    sys.exit(main(sys.argv))
