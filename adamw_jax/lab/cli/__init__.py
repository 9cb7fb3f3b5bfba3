"""Run the command ``adamw-jax``; ``main`` is its entry point and imports the rest when called."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

NEEDED = {"filelock", "flax", "matplotlib", "platformdirs", "rich", "sklearn", "tyro"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status.

    Args:
      arguments: the words after ``adamw-jax``; None for those of the real command line.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a character that it lacks must not end a run
    try:
        from adamw_jax.lab.cli.commands import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in NEEDED:
            raise
        print(
            f"error: the command line needs {error.name}, which is not installed: "
            'pip install "adamw-jax[demo]".',
            file=sys.stderr,
        )
        return 2
    try:
        return run(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(interrupt.args[0] if interrupt.args else "interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # nobody reads the output any more
        return 141
    except OSError as error:
        place = f"cannot use {error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}; what is written is kept", file=sys.stderr)
        return 2
