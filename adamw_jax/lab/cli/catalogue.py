"""Print what ``adamw-jax list`` and ``adamw-jax info NAME`` show."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from adamw_jax import info, list_optimizers
from adamw_jax.lab import data
from adamw_jax.lab.choices import choose, unknown
from adamw_jax.lab.experiments import get_experiment, list_experiments
from adamw_jax.lab.recipes import PREFIX, check_optimizer
from adamw_jax.lab.tasks import TASKS, get_task


def show_list(pattern: str, console: Console) -> int:
    """Print the optimizers, tasks and experiments whose names match."""
    optimizers, tasks, experiments = (
        fnmatch.filter(names, pattern) for names in (list_optimizers(), TASKS, list_experiments())
    )
    if not (optimizers or tasks or experiments):
        known = dict.fromkeys((*list_optimizers(), *TASKS, *list_experiments()))
        raise ValueError(unknown("name", pattern, known))
    records = [info(name) for name in optimizers]
    _show(console, "Optimizers", ("name", "reference", "state per parameter"), [
        (one.name, one.citation, one.state.removesuffix(" per parameter")) for one in records
    ])  # fmt: skip
    if optimizers:
        console.print(f"The prefix {PREFIX} puts Lookahead around any of them: {PREFIX}adamw.\n")
    _show(console, "Tasks", ("name", "data"), [(name, _about(name)) for name in tasks])
    rows = [(name, get_experiment(name).title) for name in experiments]
    _show(console, "Experiments", ("name", "subject"), rows)
    return 0


def _about(task: str) -> str:
    """Return what a task is, or what must be installed for it."""
    try:
        return get_task(task).about
    except ValueError as error:
        return str(error)


def _show(
    console: Console, title: str, heads: Iterable[str], rows: Iterable[Iterable[str]]
) -> None:
    """Print a table whose first column holds names, which are never cut; nothing if it is empty."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE)
    for head in heads:
        table.add_column(head, no_wrap=head == "name", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    if table.row_count:
        console.print(table)


def show_data(names: Sequence[str], offline: bool, console: Console) -> int:
    """Download and verify data sets; without names, print what there is."""
    if offline:
        data.keep_off_the_network()
    for name in names:
        path = data.get(choose("data set", name, data.REMOTE))
        console.print(f"{name}: {path}", markup=False, highlight=False, soft_wrap=True)
    if not names:
        _show(console, f"Data sets in {data.folder()}", ("name", "size", "there"), [
            (name, f"{one.size / 1e6:.0f} MB",
             "yes" if (data.folder() / one.name).exists() else "no")
            for name, one in data.REMOTE.items()
        ])  # fmt: skip
    return 0


def show_info(name: str, console: Console) -> int:
    """Print the facts about an optimizer, and its arguments."""
    check_optimizer(name)
    record = info(name.removeprefix(PREFIX))
    around = "Lookahead around " if name.startswith(PREFIX) else ""
    options = ", ".join(f"{key}={value!r}" for key, value in record.twin_options.items())
    step = {None: "no power", 0: "power 0", 1: "power 1"}.get(record.degree, str(record.degree))
    facts = {
        "name": f"{name}: {around}{record.title}",
        "equation": record.equation,
        "reference": record.citation + (f", arXiv {record.arxiv}" if record.arxiv else ""),
        "arguments": _arguments(record.factory),
        "direction only": _arguments(record.direction) if record.direction else "",
        "state": record.state + (", and one more for Lookahead" if around else ""),
        "differs": record.differs,
        "same as": f"{record.twin} with {options or 'the defaults'}" if record.twin else "",
        "does not take": record.lacks,
        "update needs": ", ".join(record.needs),
        "size of a step": f"proportional to {step} of the scale of the gradient",
        "step depends on": f"the gradient of the {record.scope}",
    }
    grid = Table(show_header=False, box=None, pad_edge=False)
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    for title, text in facts.items():
        if text:
            grid.add_row(title, escape(text))
    console.print(grid)
    return 0


def _arguments(function: Callable[..., Any]) -> str:
    """Return the call of a function without types: ``adam(learning_rate, b1=0.9)``."""
    signature = inspect.signature(function)
    bare = [
        one.replace(annotation=inspect.Parameter.empty) for one in signature.parameters.values()
    ]
    plain = signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)
    return f"{getattr(function, '__name__', '')}{plain}"
