"""``save_on_sigterm``: save a run that is told to end, and exit with a code of its own.

>>> with save_on_sigterm() as check:
...     for step in range(2):
...         check(step, lambda: print("saved"))  # nobody sent SIGTERM
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

PREEMPTED = 75
"""75, the exit code EX_TEMPFAIL of sysexits.h: "try again"."""

Check = Callable[[int, Callable[[], Any]], None]


@contextlib.contextmanager
def save_on_sigterm(exit_code: int = PREEMPTED) -> Iterator[Check]:
    """Give a function for the end of each step, which saves and exits after a SIGTERM.

    With several processes JAX's preemption service, which ``jax.distributed.initialize`` starts,
    makes all of them save the same step, the one after the last that any of them has begun. It
    needs a call with every step. With one process, a SIGTERM that no call sees has its usual effect
    at the end of the block.

    Args:
      exit_code: code of the exit; 75 is ``EX_TEMPFAIL``, so a scheduler can tell a run that was
        saved from one that failed.

    Yields:
      ``check(step, save)``: if SIGTERM came, it calls ``save()`` and raises ``SystemExit``.

    Raises:
      ValueError: it is not called in the main thread, where Python handles signals.

    Example:
      >>> import adamw_jax as aj
      >>> with aj.state.save_on_sigterm() as check:
      ...     for step in range(3):
      ...         check(step, lambda: print("save_checkpoint(...)"))
    """
    told = False

    def check(step: int, save: Callable[[], Any]) -> None:
        several = jax.process_count() > 1
        if multihost_utils.reached_preemption_sync_point(step) if several else told:
            save()
            raise SystemExit(exit_code)

    def note(*_: Any) -> None:
        nonlocal told
        told = True

    if jax.process_count() > 1:
        yield check
        return
    before = signal.signal(signal.SIGTERM, note)
    try:
        yield check
        unseen = told
    finally:
        signal.signal(signal.SIGTERM, before)
    if unseen:
        signal.raise_signal(signal.SIGTERM)
