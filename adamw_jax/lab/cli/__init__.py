"""The command ``adamw-jax``. ``main`` is its entry point; everything heavy is imported later."""

from __future__ import annotations

import sys
from collections.abc import Sequence

NEEDED = {"flax", "matplotlib", "rich", "sklearn", "tyro"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status.

    Args:
      arguments: what follows ``adamw-jax`` on the command line; None for the real command line.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        from adamw_jax.lab.cli.commands import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in NEEDED:
            raise
        print(
            f"error: the command line needs {error.name}, which is not installed; "
            'pip install "adamw-jax[demo]" brings it.',
            file=sys.stderr,
        )
        return 2
    try:
        return run(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what was finished is in the logs folder", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone; so has the wish for a message
        return 141
