"""Write and read the logs of a run: settings as JSON, rows as JSONL and as CSV.

* ``logs/<experiment>.json``: experiment, preset, settings and their hash; at the end also seconds,
  number of rows and the hash of the rows
* ``logs/<experiment>.jsonl``: one row per line
* ``logs/<experiment>.csv``: the same rows
* ``run.json``: title, command, start, seconds, environment, order of experiments

The head is written first. A log whose head has no number of rows is not finished: it can be shown
and continued. Files are replaced in one move, so a full disk leaves the old ones.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adamw_jax.lab.experiments.registry import Experiment, get_experiment, settings_hash
from adamw_jax.lab.json_files import read_json, refuse, write_json, write_text
from adamw_jax.lab.plots.files import as_csv

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Logged:
    """An experiment that has been measured; ``finished`` is False if rows are missing."""

    experiment: Experiment
    preset: str
    settings: Any
    seconds: float
    rows: list[Row]
    finished: bool = True


def write_log(folder: Path, logged: Logged) -> None:
    """Write the three files of an experiment, the head last."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{_line(row)}\n" for row in logged.rows)
    name = logged.experiment.name
    write_text(folder / f"{name}.jsonl", text)
    write_text(folder / f"{name}.csv", as_csv(logged.rows))
    ending = {"rows": len(logged.rows), "rows_hash": _hash(text)} if logged.finished else {}
    head = {
        "experiment": name,
        "preset": logged.preset,
        "settings": dataclasses.asdict(logged.settings),
        "settings_hash": settings_hash(logged.settings),
        "seconds": round(logged.seconds, 2),
        **ending,
    }
    write_json(folder / f"{name}.json", head)


def read_log(folder: Path, name: str) -> Logged:
    """Read the files of ``write_log``; a missing or damaged one is a ``ValueError``."""
    head, path = read_json(folder / f"{name}.json"), folder / f"{name}.jsonl"
    finished = "rows" in head
    try:
        text = path.read_text(encoding="utf-8") if finished or path.exists() else ""
        rows = _rows(text if finished else text[: text.rfind("\n") + 1])
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot read the log {path}: {error}") from error
    if finished and (len(rows), _hash(text)) != (head["rows"], head.get("rows_hash")):
        raise ValueError(
            f"the log {path} has {len(rows)} rows that are not the {head['rows']} that were "
            f"written, as {folder / f'{name}.json'} says: run the experiment again."
        )
    try:
        experiment = get_experiment(head["experiment"])
        settings = experiment.settings_from(head["settings"])
        if settings_hash(settings) != head["settings_hash"]:
            raise ValueError("the settings are not those that were written")
        return Logged(
            experiment, str(head["preset"]), settings, float(head["seconds"]), rows, finished
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"cannot use the log {folder / f'{name}.json'}: {what}") from error


class LiveLog:
    """A log to which rows are added while an experiment runs.

    The file for programs (JSONL) and the table (CSV) have all rows that were added before a crash.
    """

    def __init__(
        self,
        folder: Path,
        logged: Logged,
        resume: bool,
        whole: Callable[[list[Row]], list[Row]] = lambda rows: rows,
    ):
        """Begin, or with ``resume`` read what is there.

        Args:
          folder: the folder of the logs.
          logged: experiment, preset and settings.
          resume: continue a log with the same settings.
          whole: returns those of earlier rows that belong to whole runs; the others are dropped.
        """
        self.folder, self.logged = folder, dataclasses.replace(logged, finished=False)
        name = logged.experiment.name
        if resume and (folder / f"{name}.json").exists():
            old = read_log(folder, name)
            same_settings(folder, old.settings, logged.settings)
            self.logged = dataclasses.replace(old, rows=whole(old.rows), finished=False)
        write_log(folder, self.logged)
        self.keys = list(dict.fromkeys(key for row in self.rows for key in row))

    @property
    def rows(self) -> list[Row]:
        """All rows so far."""
        return self.logged.rows

    def add(self, rows: Sequence[Row]) -> None:
        """Add rows to the files; they stay in memory also if the disk is full."""
        self.rows.extend(rows)
        new = [key for row in rows for key in row if key not in self.keys]
        self.keys += dict.fromkeys(new)
        stem = self.folder / self.logged.experiment.name
        table = as_csv(self.rows if new else rows, self.keys)
        if not new:
            table = table.partition("\n")[2]
        for kind, text in (("jsonl", "".join(f"{_line(row)}\n" for row in rows)), ("csv", table)):
            path = stem.with_suffix(f".{kind}")
            try:
                with open(path, "w" if new and kind == "csv" else "a", encoding="utf-8") as file:
                    file.write(text)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error

    def finish(self, rows: list[Row], seconds: float) -> Logged:
        """Write the log anew with all rows in order; return it."""
        done = dataclasses.replace(
            self.logged, rows=rows, seconds=self.logged.seconds + seconds, finished=True
        )
        write_log(self.folder, done)
        return done


def same_settings(folder: Path, old: Any, new: Any) -> None:
    """Raise ``ValueError`` if settings differ from those of a log."""
    before, after = dataclasses.asdict(old), dataclasses.asdict(new)
    changed = [f"{key} {before[key]!r} there, {value!r} now"
               for key, value in after.items() if before[key] != value]  # fmt: skip
    if changed:
        raise ValueError(
            f"cannot continue {folder.parent}: it was made with other settings ({changed[0]}); "
            "give the same ones, or another folder (--out)."
        )


def write_run(folder: Path, run: dict[str, Any]) -> None:
    """Write ``run.json``."""
    write_json(folder / "run.json", run)


def _rows(text: str) -> list[Row]:
    rows = [json.loads(line, parse_constant=refuse) for line in io.StringIO(text)]
    wrong = next((row for row in rows if not isinstance(row, dict)), None)
    if wrong is not None:
        raise ValueError(f"a row must be an object, got {wrong!r}")
    return rows


def _line(row: Row) -> str:
    return json.dumps(row, allow_nan=False)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
