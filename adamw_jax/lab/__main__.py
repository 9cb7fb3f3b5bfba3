"""Run ``adamw-jax`` as ``python -m adamw_jax.lab``."""

import sys

from adamw_jax.lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
