"""Experiments by name: a claim, how it is measured, and how the numbers are judged."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from adamw_jax.lab.choices import choose, unknown
from adamw_jax.lab.results import Result
from adamw_jax.lab.train import Runner

Rows = list[dict[str, Any]]
PRESETS = ("demo", "quick", "tiny")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One experiment.

    Attributes:
      name: what one types.
      title: its heading.
      question: what is asked, and why anyone would.
      setup: how it is measured; for the reader of the report.
      presets: settings by name: ``"demo"``, ``"quick"`` and ``"tiny"`` (for tests). They are frozen
        dataclasses of numbers, strings and tuples, so that they survive a trip through JSON.
      measure: (settings, runner) -> rows for the log. All the work.
      analyse: (settings, rows) -> result. Nothing but arithmetic on the rows, so that a report can
        be rebuilt from the log.
      reference: the paper.
    """

    name: str
    title: str
    question: str
    setup: str
    presets: Mapping[str, Any]
    measure: Callable[[Any, Runner], Rows]
    analyse: Callable[[Any, Rows], Result]
    reference: str = ""

    def settings(self, preset: str) -> Any:
        """The settings of a preset.

        Raises:
          ValueError: there is no such preset.
        """
        return choose(f"preset of {self.name}", preset, self.presets)

    def settings_from(self, stored: Mapping[str, Any]) -> Any:
        """Settings as they were written to a log."""
        kind = type(next(iter(self.presets.values())))
        known = {field.name for field in dataclasses.fields(kind)}
        for key in stored:
            if key not in known:
                raise ValueError(unknown(f"setting of {self.name}", key, sorted(known)))
        return kind(**{key: _tuples(value) for key, value in stored.items()})


_EXPERIMENTS: dict[str, Experiment] = {}


def register(experiment: Experiment) -> Experiment:
    """Enters an experiment; its name must be new."""
    if experiment.name in _EXPERIMENTS:
        raise ValueError(f"there is an experiment {experiment.name!r} already; take another name.")
    _EXPERIMENTS[experiment.name] = experiment
    return experiment


def get_experiment(name: str) -> Experiment:
    """An experiment by name.

    Raises:
      ValueError: there is none of that name; the message names those there are.
    """
    return choose("experiment", name, _EXPERIMENTS)


def list_experiments() -> tuple[str, ...]:
    """Names of all experiments, in the order in which they were entered."""
    return tuple(_EXPERIMENTS)


def settings_hash(settings: Any) -> str:
    """Twelve hexadecimal digits that name these settings."""
    text = json.dumps(dataclasses.asdict(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value
