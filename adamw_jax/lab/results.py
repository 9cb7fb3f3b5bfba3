"""Define what an experiment passes to a report: verdicts, tables and figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adamw_jax.lab.stats import WORDS

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A claim and the verdict on it.

    Attributes:
      claim: the claim, as stated by its proponents.
      task: the task on which it was tested.
      word: one of ``stats.WORDS``.
      evidence: the numbers, in a sentence.
      rule: how the word follows from the numbers, fixed before measuring.
      literature: findings of others.
    """

    claim: str
    task: str
    word: str
    evidence: str
    rule: str
    literature: str = ""

    def __post_init__(self) -> None:
        """Check the word."""
        if self.word not in WORDS:
            raise ValueError(f"a verdict must be one of {WORDS}, got {self.word!r}.")


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table: the key in the rows, the heading and the format of the cells."""

    key: str
    title: str
    form: str = "{}"

    @property
    def numeric(self) -> bool:
        """Return whether cells are numbers, which are aligned right."""
        return self.form != "{}"

    def cell(self, row: Row) -> str:
        """Return the formatted cell; empty if the row has no value."""
        value = row.get(self.key)
        if value is None:
            return ""
        return value if isinstance(value, str) else self.form.format(value)


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of raw numbers, with columns that define their format."""

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]


@dataclasses.dataclass(frozen=True)
class Panel:
    """One set of axes.

    Attributes:
      title: title above the axes.
      draw: (axes, rows) -> None; it draws only numbers from the rows.
      rows: the plotted numbers.
    """

    title: str
    draw: Callable[[Any, Sequence[Row]], None]
    rows: Sequence[Row]


@dataclasses.dataclass(frozen=True)
class Figure:
    """One picture.

    Attributes:
      name: name of its files.
      title: title above the panels.
      alt: description for readers who cannot see it.
      panels: its axes, row by row.
      columns: panels in a row.
      panel_size: width and height of one panel in inches.
    """

    name: str
    title: str
    alt: str
    panels: Sequence[Panel]
    columns: int = 2
    panel_size: tuple[float, float] = (4.6, 3.5)


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of an experiment.

    Attributes:
      verdicts: one per claim and task.
      tables: the numbers behind them.
      figures: the pictures.
      remarks: important sentences for the reader.
    """

    verdicts: Sequence[Verdict] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    remarks: Sequence[str] = ()

    @property
    def leading(self) -> list[Table]:
        """The tables that a report shows first, with the figures: the ranking of a comparison."""
        return [table for table in self.tables if table.name.endswith("ranking")]

    @property
    def details(self) -> list[Table]:
        """The other tables."""
        return [table for table in self.tables if table not in self.leading]
