"""Print what ``adamw-jax list`` and ``adamw-jax info NAME`` show."""

from __future__ import annotations

import dataclasses
import inspect

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from adamw_jax import info, list_optimizers
from adamw_jax.lab.choices import unknown
from adamw_jax.lab.experiments import get_experiment, list_experiments
from adamw_jax.lab.tasks import TASKS


def show_list(pattern: str, console: Console) -> int:
    """Print the matching optimizers; with ``"*"`` also tasks and experiments."""
    found = list_optimizers(pattern)
    if not found:
        raise ValueError(unknown("optimizer", pattern, list_optimizers()))
    table = Table(title="Optimizers", title_justify="left", header_style="bold")
    for title in ("name", "title", "reference"):
        table.add_column(title)
    table.add_column("state per parameter", justify="right")
    for name in found:
        row = info(name)
        state = row.state.removesuffix(" per parameter")
        table.add_row(name, escape(row.title), escape(row.citation), state)
    console.print(table)
    if pattern == "*":
        console.print("The prefix lookahead_ puts Lookahead around any of them: lookahead_adamw.")
        console.print(f"Tasks: {', '.join(TASKS)}", highlight=False)
        console.print("Experiments:", highlight=False)
        for name in list_experiments():
            console.print(
                f"  {name:17} {get_experiment(name).title}", highlight=False, markup=False
            )
    return 0


def show_info(name: str, console: Console) -> int:
    """Print every field of the optimizer's registry record, and its signature."""
    try:
        record = info(name)
    except ValueError as error:
        raise ValueError(unknown("optimizer", name, list_optimizers())) from error
    grid = Table(show_header=False, box=None, pad_edge=False)
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if callable(value):
            signature = inspect.signature(value)
            grid.add_row(field.name, escape(f"{getattr(value, '__name__', name)}{signature}"))
        elif value not in ("", None, {}, ()):
            grid.add_row(field.name.replace("_", " "), escape(str(value)))
    console.print(grid)
    return 0
