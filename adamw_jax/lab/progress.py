"""Show progress: a live bar on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import threading
import time
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress as Bar,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column


class Progress(Protocol):
    """Interface for reporting progress; safe to call from several threads."""

    def experiment(self, title: str, number: int, of: int) -> None:
        """Report the start of an experiment."""
        ...

    def begin(self, title: str, total: int) -> None:
        """Report the start of a piece of work with ``total`` training steps."""
        ...

    def advance(self, steps: int, message: str) -> None:
        """Report finished steps; ``message`` shows their numbers."""
        ...

    def end(self) -> None:
        """Report the end of the piece of work."""
        ...


class Silent:
    """Progress that shows nothing."""

    def experiment(self, title: str, number: int, of: int) -> None:
        """Do nothing."""

    def begin(self, title: str, total: int) -> None:
        """Do nothing."""

    def advance(self, steps: int, message: str) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""


class Lines:
    """Progress as plain lines, at most one every few seconds, for logs and pipes."""

    def __init__(self, console: Console, every: float = 5.0):
        """Write to ``console``, at most once in ``every`` seconds."""
        self.console, self.every = console, every
        self.total = self.done = 0
        self.title = ""
        self.start = self.last = 0.0
        self.lock = threading.Lock()

    def experiment(self, title: str, number: int, of: int) -> None:
        """Print a heading."""
        self.console.print(f"[{number}/{of}] {title}", markup=False, highlight=False)

    def begin(self, title: str, total: int) -> None:
        """Start counting."""
        with self.lock:
            self.title, self.total, self.done, self.last = title, total, 0, time.monotonic()
            self.start = self.last

    def advance(self, steps: int, message: str) -> None:
        """Count steps, and print a line when it is time."""
        with self.lock:
            self.done += steps
            now = time.monotonic()
            if now - self.last >= self.every:
                self.last = now
                share = 100 * self.done // max(self.total, 1)
                left = (now - self.start) * (self.total / max(self.done, 1) - 1)
                rest = f", {left:.0f} s left" if share >= 5 else ""  # before, it mostly compiled
                text = f"      {share:3d} %{rest}: {message}"
                self.console.print(text, markup=False, highlight=False)

    def end(self) -> None:
        """Do nothing."""


class Live:
    """Progress as a bar for the current piece of work; use it as a context manager."""

    def __init__(self, console: Console):
        """Draw on ``console``."""
        self.bar = Bar(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=16),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[message]}", table_column=Column(no_wrap=True, ratio=1)),
            console=console,
            expand=True,
        )
        self.heading = ""
        self.current = None

    def __enter__(self) -> Live:
        """Start drawing."""
        self.bar.start()
        return self

    def __exit__(self, *reason: object) -> None:
        """Stop drawing; finished bars stay."""
        self.bar.stop()

    def experiment(self, title: str, number: int, of: int) -> None:
        """Label the next bars with this experiment."""
        self.heading = f"{number}/{of} {title}"

    def begin(self, title: str, total: int) -> None:
        """Add a bar."""
        self.current = self.bar.add_task(
            self.heading or title, total=total, message=f"{title}: compiling"
        )

    def advance(self, steps: int, message: str) -> None:
        """Advance the bar."""
        if self.current is not None:
            self.bar.update(self.current, advance=steps, message=message)

    def end(self) -> None:
        """Complete the bar."""
        if self.current is not None:
            self.bar.update(self.current, message="")
            self.current = None
