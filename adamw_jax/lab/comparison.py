"""Judge the runs of a comparison: ranking, verdicts, curves, report."""

from __future__ import annotations

import base64
import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adamw_jax.lab.settings import Row, Settings, numbers_of
from adamw_jax.lab.spaces import edges
from adamw_jax.lab.stats import ERROR, Judged, judge

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

    from adamw_jax.lab.results import Result

TUNE, CONFIRM = "tune", "confirm"


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison:
    """The result of ``compare``.

    Attributes:
      settings: what was compared.
      rows: one row per run and evaluation, a plain list of dicts: stage (``"tune"`` or
        ``"confirm"``), optimizer, trial, hyperparameters, seed, step, seconds and metrics. It suits
        ``pandas.DataFrame(comparison.rows)``. A metric that is not finite is None.
      seconds: duration of all runs.

    Example:
      >>> import jax, numpy as np
      >>> from adamw_jax.lab import Budget, Task, compare, split
      >>> x = np.linspace(-1, 1, 60, dtype=np.float32)
      >>> line = Task(
      ...     init=lambda key: {"slope": jax.random.normal(key)},
      ...     loss=lambda params, batch: (params["slope"] * batch[0] - batch[1]) ** 2,
      ...     data=split((x, 3 * x)),
      ... )
      >>> found = compare(line, ["adamw", "sgdw"], budget=Budget(20, trials=2), seeds=3)
      >>> len(found.final("adamw")), found.rows[0]["stage"]
      (3, 'tune')
    """

    settings: Settings
    rows: list[Row]
    seconds: float = 0.0

    @functools.cached_property
    def runs(self) -> dict[tuple[str, str, int, int], list[Row]]:
        """Rows of every run, in order, by stage, optimizer, trial and seed."""
        found: dict[Any, list[Row]] = {}
        for row in self.rows:
            key = row["stage"], row["optimizer"], row["trial"], row["seed"]
            found.setdefault(key, []).append(row)
        complete = {}
        for key, rows in found.items():
            rows = sorted(rows, key=lambda row: row["step"])
            if rows[-1]["step"] == self.settings.steps:
                complete[key] = rows
        return complete

    def trials(self, optimizer: str) -> dict[int, tuple[dict[str, float], list[float]]]:
        """Return hyperparameters and validation metric (one value per seed) of every trial.

        Args:
          optimizer: name of the optimizer.

        A diverged run has the value NaN.
        """
        found: dict[int, tuple[dict[str, float], list[float]]] = {}
        for (stage, name, trial, _), rows in self.runs.items():
            if (stage, name) == (TUNE, optimizer):
                values = found.setdefault(trial, (numbers_of(rows[-1]), []))[1]
                values.append(self._value(rows, "validation"))
        return found

    def chosen(self, optimizer: str) -> tuple[int, dict[str, float]] | None:
        """Return number and hyperparameters of the best trial; None before there is one.

        Args:
          optimizer: name of the optimizer.
        """
        found = self.trials(optimizer)
        if not found:
            return None
        sign = 1 if self.settings.higher_is_better else -1

        def score(trial: int) -> tuple[float, float]:
            values = np.asarray(found[trial][1])
            fine = np.isfinite(values)
            return float(fine.mean()), sign * float(values[fine].mean()) if fine.any() else 0.0

        best = max(sorted(found), key=score)
        return best, found[best][0]

    def final(self, optimizer: str) -> dict[int, float]:
        """Return the reported metric at the end by seed; NaN for a diverged run.

        Args:
          optimizer: name of the optimizer.
        """
        return {
            key[3]: self._value(rows, self.settings.split)
            for key, rows in sorted(self.runs.items())
            if key[:2] == (CONFIRM, optimizer)
        }

    def _value(self, rows: Sequence[Row], split: str) -> float:
        """Return the metric at the end of a run; NaN if anything in the run was not finite."""
        s = self.settings
        if any(row["train_loss"] is None for row in rows):
            return math.nan
        value = rows[-1][f"{split}_{s.metric}"]
        return math.nan if value is None else float(value)

    @functools.cached_property
    def finished(self) -> list[str]:
        """The optimizers that have all their confirming runs."""
        s = self.settings
        return [name for name in s.optimizers if len(self.final(name)) == s.seeds]

    @functools.cached_property
    def margin(self) -> float:
        """The largest difference that does not matter, in the unit of the metric."""
        s = self.settings
        if s.margin is not None:
            return s.margin
        if s.percent:
            return 0.01
        values = np.asarray(list(self.final(s.optimizers[0]).values()) or [math.nan])
        return (
            0.02 * float(np.abs(values[np.isfinite(values)].mean()))
            if np.isfinite(values).any()
            else 0.0
        )

    @functools.cached_property
    def target(self) -> float:
        """The value on validation data to which steps and seconds are counted."""
        s = self.settings
        if s.target is not None:
            return s.target
        best = self.chosen(s.optimizers[0])
        values = self.trials(s.optimizers[0])[best[0]][1] if best else [math.nan]
        return float(np.mean(values)) - (self.margin if s.higher_is_better else -self.margin)

    def judged(self, pairs: Sequence[tuple[str, str]]) -> Judged:
        """Judge "the first is better than the second" for pairs of optimizers, together.

        Args:
          pairs: names of optimizers.
        """
        sign = 1 if self.settings.higher_is_better else -1
        finals = {name: self.final(name) for pair in pairs for name in pair}
        shared = sorted(set.intersection(*(set(values) for values in finals.values())))
        differences = [[sign * (finals[a][i] - finals[b][i]) for i in shared] for a, b in pairs]
        return judge(np.asarray(differences, np.float64), self.margin)

    def ranking(self) -> list[Row]:
        """Return one row per optimizer, the best first.

        The rank is 1 plus the number of optimizers that are better, by paired tests of all pairs,
        corrected by Holm, and not equivalent. So optimizers that these seeds cannot tell apart, or
        whose difference is within the margin, may share a rank. One with diverged runs comes after
        all without.

        Each row has ``rank``, ``optimizer``, ``mean`` and ``sd`` of the metric, the chosen
        hyperparameters, ``trials``, ``diverged`` (confirming runs), ``tuning_diverged``, ``steps``
        and ``seconds`` to the target (medians; None if fewer than half of the runs reached it) and
        ``reached`` (their share); and against the baseline ``word``, ``difference``, ``low``,
        ``high``, ``p``, ``detectable`` and ``within_margin``. A positive difference is a better
        metric.
        """
        s, names = self.settings, self.finished
        lines = {name: self._line(name) for name in names}
        pairs = [(a, b) for a in names for b in names if a != b]
        order = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
        better = {name: 0 for name in names}
        if order:
            found = self.judged(order)
            for (a, b), word, p in zip(order, found.words, found.p_equivalence, strict=True):
                better[b] += word == "shown" and p >= ERROR
                better[a] += word == "contradicted" and p >= ERROR
        for a, b in pairs:
            better[a] += lines[a]["diverged"] > 0 and lines[b]["diverged"] == 0
        for name in names:
            lines[name]["rank"] = 1 + int(better[name])
        others = [(name, s.optimizers[0]) for name in names if name != s.optimizers[0]]
        if others and s.optimizers[0] in names:
            found = self.judged(others)
            for i, (name, _) in enumerate(others):
                lines[name] |= {
                    "word": str(found.words[i]), "difference": float(found.mean[i]),
                    "low": float(found.low[i]), "high": float(found.high[i]),
                    "p": float(found.p_difference[i]), "detectable": float(found.detectable[i]),
                    "within_margin": bool(found.p_equivalence[i] < ERROR),
                }  # fmt: skip
        sign = -1 if s.higher_is_better else 1
        return sorted(
            lines.values(), key=lambda line: (line["rank"], _or_last(sign * line["mean"]))
        )

    def _line(self, name: str) -> Row:
        values = np.asarray(list(self.final(name).values()))
        fine = values[np.isfinite(values)]
        best, found = self.chosen(name), self.trials(name)
        tuning = [value for _, own in found.values() for value in own]
        return {
            "rank": 0,
            "optimizer": name,
            "mean": float(fine.mean()) if fine.size else math.nan,
            "sd": float(fine.std(ddof=1)) if fine.size > 1 else math.nan,
            **(best[1] if best else {}),
            "trials": len(found),
            "diverged": int(values.size - fine.size),
            "tuning_diverged": int(np.isnan(tuning).sum()),
            **self._to_target(name),
        }

    def _to_target(self, name: str) -> Row:
        """Return median steps and seconds to the target, and the share of runs that reached it."""
        s, firsts = self.settings, []
        for key, rows in self.runs.items():
            if key[:2] == (CONFIRM, name):
                values = [(row[f"validation_{s.metric}"], row) for row in rows]
                good = (
                    row
                    for value, row in values
                    if value is not None
                    and (value >= self.target if s.higher_is_better else value <= self.target)
                )
                first = next(good, None)
                firsts.append((first["step"], first["seconds"]) if first else (math.inf, math.inf))
        steps, seconds = np.median(np.asarray(firsts), axis=0)
        return {
            "steps": float(steps) if math.isfinite(steps) else None,
            "seconds": float(seconds) if math.isfinite(seconds) else None,
            "reached": float(np.mean([math.isfinite(first[0]) for first in firsts])),
        }

    def at_edge(self) -> dict[str, dict[str, bool]]:
        """Return for each optimizer the axes at whose edge its choice lies; True for the upper."""
        found = {}
        for name in self.settings.optimizers:
            best = self.chosen(name)
            tried = [numbers for numbers, _ in self.trials(name).values()]
            if best and (own := edges(tried, best[1])):
                found[name] = own
        return found

    def result(self) -> Result:
        """Return verdicts, tables, figures and remarks for a report."""
        from adamw_jax.lab.experiments.compare import result

        return result(self)

    def plot(self) -> Canvas:
        """Return a matplotlib figure: search, curves and final values. Needs matplotlib."""
        from adamw_jax.lab.plots.files import draw

        return draw(self.result().figures[0])

    def report(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write rows, tables, figures and the report into a folder; return ``report.html``.

        Args:
          folder: new or empty folder.
          overwrite: replace earlier results there.
        """
        from adamw_jax.lab.runs import write_results

        return write_results(self, Path(folder), overwrite)

    def __repr__(self) -> str:
        """Return the ranking as text."""
        from adamw_jax.lab.report.markdown import of_table

        return of_table(self.result().tables[0])

    def _repr_html_(self) -> str:
        """Return ranking, remarks and figure for a notebook."""
        import io

        from adamw_jax.lab.plots.files import draw
        from adamw_jax.lab.report.html import remarks, table

        found, picture = self.result(), io.BytesIO()
        draw(found.figures[0]).savefig(picture, format="png", dpi=110)
        data = base64.b64encode(picture.getvalue()).decode()
        return (
            f"{table(found.tables[0])}{remarks(found.remarks)}"
            f'<img alt="{found.figures[0].title}" src="data:image/png;base64,{data}" '
            'style="max-width:100%">'
        )


def whole_runs(settings: Settings, rows: list[Row]) -> list[Row]:
    """Return the rows of the runs that are complete; a killed process may leave half a run."""
    return [row for own in Comparison(settings, rows).runs.values() for row in own]


def _or_last(value: float) -> float:
    return value if math.isfinite(value) else math.inf
