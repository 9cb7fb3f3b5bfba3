"""Write and read the logs of a run: settings as JSON, rows as JSONL and as CSV.

* ``logs/<experiment>.json``: experiment, preset, settings and their hash, seconds, number of rows
* ``logs/<experiment>.jsonl``: one row per line
* ``logs/<experiment>.csv``: the same rows
* ``run.json``: title, command, start, seconds, environment, order of experiments
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adamw_jax.lab.experiments.registry import Experiment, get_experiment, settings_hash
from adamw_jax.lab.plots.files import as_csv

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Logged:
    """An experiment that has been measured."""

    experiment: Experiment
    preset: str
    settings: Any
    seconds: float
    rows: list[Row]


def write_log(folder: Path, logged: Logged) -> None:
    """Write the three files of an experiment."""
    folder.mkdir(parents=True, exist_ok=True)
    name = logged.experiment.name
    head = {
        "experiment": name,
        "preset": logged.preset,
        "settings": dataclasses.asdict(logged.settings),
        "settings_hash": settings_hash(logged.settings),
        "seconds": round(logged.seconds, 2),
        "rows": len(logged.rows),
    }
    _write_json(folder / f"{name}.json", head)
    lines = [json.dumps(row, allow_nan=False) for row in logged.rows]
    (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (folder / f"{name}.csv").write_text(as_csv(logged.rows), encoding="utf-8")


def read_log(folder: Path, name: str) -> Logged:
    """Read the files of ``write_log``; a missing or damaged one is a ``ValueError``."""
    head = read_json(folder / f"{name}.json")
    path = folder / f"{name}.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the log {path}: {error}") from error
    if len(rows) != head.get("rows"):
        raise ValueError(
            f"the log {path} has {len(rows)} rows, but {folder / f'{name}.json'} says "
            f"{head.get('rows')}: it is incomplete, run the experiment again."
        )
    experiment = get_experiment(head["experiment"])
    settings = experiment.settings_from(head["settings"])
    return Logged(experiment, head["preset"], settings, head["seconds"], rows)


def write_run(folder: Path, title: str, command: str, started: str, seconds: float,
              environment: dict[str, str], experiments: Sequence[str]) -> None:  # fmt: skip
    """Write ``run.json``."""
    _write_json(
        folder / "run.json",
        {
            "title": title,
            "command": command,
            "started": started,
            "seconds": round(seconds, 1),
            "environment": environment,
            "experiments": list(experiments),
        },
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object; a missing or damaged file is a ``ValueError``."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
