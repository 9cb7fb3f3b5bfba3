"""What an experiment hands to a report: verdicts, tables and figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adamw_jax.lab.stats import WORDS

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A claim and what became of it.

    Attributes:
      claim: the claim, as its proponents put it.
      task: where it was tried.
      word: ``"shown"``, ``"tie"`` or ``"not shown"``.
      evidence: the numbers, in words.
      rule: how the word follows from the numbers, fixed beforehand.
      literature: what others found.
    """

    claim: str
    task: str
    word: str
    evidence: str
    rule: str
    literature: str = ""

    def __post_init__(self) -> None:
        """Checks the word."""
        if self.word not in WORDS:
            raise ValueError(f"a verdict must be one of {WORDS}, got {self.word!r}.")


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table: the key in the rows, the heading and the format of a cell."""

    key: str
    title: str
    form: str = "{}"

    @property
    def numeric(self) -> bool:
        """Whether cells are numbers, to be set flush right."""
        return self.form != "{}"

    def cell(self, row: Row) -> str:
        """The formatted cell; empty where the row has no value."""
        value = row.get(self.key)
        if value is None:
            return ""
        return value if isinstance(value, str) else self.form.format(value)


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of raw numbers, with columns that say how to print them."""

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]


@dataclasses.dataclass(frozen=True)
class Panel:
    """One set of axes.

    Attributes:
      title: above the axes.
      draw: (axes, rows) -> None; it may draw nothing that is not in the rows.
      rows: the plotted numbers.
    """

    title: str
    draw: Callable[[Any, Sequence[Row]], None]
    rows: Sequence[Row]


@dataclasses.dataclass(frozen=True)
class Figure:
    """One picture.

    Attributes:
      name: of its files.
      title: above the panels.
      alt: what it shows, for readers who do not see it.
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
    """What came out of an experiment.

    Attributes:
      verdicts: one per claim and task.
      tables: the numbers behind them.
      figures: the pictures.
      remarks: sentences a reader should not miss.
    """

    verdicts: Sequence[Verdict] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    remarks: Sequence[str] = ()
