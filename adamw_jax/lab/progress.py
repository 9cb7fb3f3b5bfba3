"""Progress: a live bar on a terminal, plain lines elsewhere, silence where asked."""

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
)
from rich.table import Column


class Progress(Protocol):
    """Told what is being done; safe to call from several threads."""

    def experiment(self, title: str, number: int, of: int) -> None:
        """A new experiment begins."""
        ...

    def begin(self, title: str, total: int) -> None:
        """A piece of work begins, of ``total`` training steps."""
        ...

    def advance(self, steps: int, message: str) -> None:
        """Some steps are done; ``message`` says with which numbers."""
        ...

    def end(self) -> None:
        """The piece of work is done."""
        ...


class Silent:
    """Says nothing."""

    def experiment(self, title: str, number: int, of: int) -> None:
        """Nothing."""

    def begin(self, title: str, total: int) -> None:
        """Nothing."""

    def advance(self, steps: int, message: str) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


class Lines:
    """Plain lines, at most one every few seconds: for logs and pipes."""

    def __init__(self, console: Console, every: float = 5.0):
        """Writes to ``console``, not more often than ``every`` seconds."""
        self.console, self.every = console, every
        self.total = self.done = 0
        self.title = ""
        self.last = 0.0
        self.lock = threading.Lock()

    def experiment(self, title: str, number: int, of: int) -> None:
        """A heading."""
        self.console.print(f"[{number}/{of}] {title}", markup=False, highlight=False)

    def begin(self, title: str, total: int) -> None:
        """Starts to count."""
        with self.lock:
            self.title, self.total, self.done, self.last = title, total, 0, time.monotonic()

    def advance(self, steps: int, message: str) -> None:
        """Counts, and writes when it is time."""
        with self.lock:
            self.done += steps
            now = time.monotonic()
            if now - self.last >= self.every:
                self.last = now
                share = 100 * self.done // max(self.total, 1)
                self.console.print(f"      {share:3d} %  {message}", markup=False, highlight=False)

    def end(self) -> None:
        """Stops to count."""


class Live:
    """A bar for the piece of work at hand, with its numbers; use as a context manager."""

    def __init__(self, console: Console):
        """Draws on ``console``."""
        self.bar = Bar(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=16),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[message]}", table_column=Column(no_wrap=True, ratio=1)),
            console=console,
            expand=True,
        )
        self.heading = ""
        self.current = None

    def __enter__(self) -> Live:
        """Starts to draw."""
        self.bar.start()
        return self

    def __exit__(self, *reason: object) -> None:
        """Stops to draw; the finished bars stay."""
        self.bar.stop()

    def experiment(self, title: str, number: int, of: int) -> None:
        """The next bars belong to this experiment."""
        self.heading = f"{number}/{of} {title}"

    def begin(self, title: str, total: int) -> None:
        """A new bar."""
        self.current = self.bar.add_task(
            self.heading or title, total=total, message=f"{title}: compiling"
        )

    def advance(self, steps: int, message: str) -> None:
        """Moves the bar."""
        if self.current is not None:
            self.bar.update(self.current, advance=steps, message=message)

    def end(self) -> None:
        """Completes the bar."""
        if self.current is not None:
            self.bar.update(self.current, message="")
            self.current = None
