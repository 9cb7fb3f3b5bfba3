"""Register experiments by name: a claim, how to measure it, and how to judge the numbers."""

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
NETWORK_PRESETS = ("cpu", "full", "trial", "tiny")
"""Presets of experiments on real networks, which are one configuration in several sizes."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One experiment.

    Attributes:
      name: name on the command line.
      title: heading in the report.
      question: the question and its motivation.
      setup: description of the measurement, for the report.
      presets: settings by name: ``PRESETS`` or ``NETWORK_PRESETS``; the first is the default, and
        ``"tiny"`` is for tests. They are frozen dataclasses of numbers, strings and tuples, so that
        they can be stored as JSON.
      measure: (settings, runner) -> rows for the log. It does all the computing.
      analyse: (settings, rows) -> result. It does only arithmetic on the rows, so that a report can
        be rebuilt from the log.
      reference: the paper.
      expected: what the preset ``"full"`` should give, and who found it.
      partial: whether ``analyse`` takes the rows of a run that was interrupted.
    """

    name: str
    title: str
    question: str
    setup: str
    presets: Mapping[str, Any]
    measure: Callable[[Any, Runner], Rows]
    analyse: Callable[[Any, Rows], Result]
    reference: str = ""
    expected: str = ""
    partial: bool = False

    @property
    def default(self) -> str:
        """The preset that is used if none is named."""
        return next(iter(self.presets))

    def settings(self, preset: str) -> Any:
        """Return the settings of a preset."""
        return choose(f"preset of {self.name}", preset, self.presets)

    def settings_from(self, stored: Mapping[str, Any]) -> Any:
        """Return settings from their form in a log."""
        kind = type(next(iter(self.presets.values())))
        known = {field.name for field in dataclasses.fields(kind)}
        for key in stored:
            if key not in known:
                raise ValueError(unknown(f"setting of {self.name}", key, sorted(known)))
        return kind(**{key: _tuples(value) for key, value in stored.items()})


_EXPERIMENTS: dict[str, Experiment] = {}


def register(experiment: Experiment) -> Experiment:
    """Register an experiment; its name must be new."""
    if experiment.name in _EXPERIMENTS:
        raise ValueError(
            f"there is already an experiment {experiment.name!r}: choose another name."
        )
    _EXPERIMENTS[experiment.name] = experiment
    return experiment


def get_experiment(name: str) -> Experiment:
    """Return an experiment by name."""
    return choose("experiment", name, _EXPERIMENTS)


def list_experiments() -> tuple[str, ...]:
    """Return the names of all experiments in the order of registration."""
    return tuple(_EXPERIMENTS)


def settings_hash(settings: Any) -> str:
    """Return a hash of the settings, twelve hexadecimal digits."""
    text = json.dumps(dataclasses.asdict(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value
