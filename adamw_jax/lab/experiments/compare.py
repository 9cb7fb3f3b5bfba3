"""Show a comparison: verdicts, tables, figure and remarks of ``adamw_jax.lab.compare``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from adamw_jax.lab.comparison import CONFIRM, Comparison
from adamw_jax.lab.experiments.parts import point
from adamw_jax.lab.experiments.registry import Experiment, Rows, register
from adamw_jax.lab.plots.dots import paired_dots
from adamw_jax.lab.plots.lines import lines
from adamw_jax.lab.results import Column, Figure, Panel, Result, Row, Table, Verdict
from adamw_jax.lab.settings import Settings
from adamw_jax.lab.train import Runner, task_of


def measure(s: Settings, runner: Runner) -> Rows:
    """Compare the optimizers on a task of the lab."""
    from adamw_jax.lab.protocol import compare
    from adamw_jax.lab.study import Budget

    budget = Budget(s.steps, s.trials, s.tuning_seeds, s.evaluations)
    found = compare(task_of(s.task), s.optimizers, budget=budget, seeds=s.seeds, extend=s.extend,
                    schedule=s.schedule, progress=runner.progress)  # fmt: skip
    return found.rows


def result(c: Comparison) -> Result:
    """Return what a report shows of a comparison."""
    ranking = c.ranking()
    return Result(_verdicts(c, ranking), _tables(c, ranking), [_figure(c)], list(_remarks(c)))


def _verdicts(c: Comparison, ranking: Sequence[Row]) -> list[Verdict]:
    s, made = c.settings, []
    mean = {line["optimizer"]: line for line in ranking}
    unit = " points" if s.percent else ""
    which, what = ("higher", "gain") if s.higher_is_better else ("lower", "reduction")
    first = s.optimizers[0]
    for name in s.optimizers[1:]:
        line = mean.get(name)
        if line is None or "word" not in line:
            continue
        difference, low, high, seen = (
            s.text(line[key], signed=True) for key in ("difference", "low", "high", "detectable")
        )
        small = ", within the margin" if line["within_margin"] else ""
        evidence = (
            f"{name} {s.text(line['mean'])}, {first} {s.text(mean[first]['mean'])}; {what} "
            f"{difference}{unit} [{low}, {high}], p {line['p']:.2g}{small}. These seeds would have "
            f"shown {seen}{unit} in 4 of 5 cases."
        )
        if line["word"] == "does not apply":
            evidence = "Runs diverged."
        made.append(Verdict(
            claim=f"{name} reaches a {which} {s.split} {s.metric} than {first}",
            task=s.task, word=line["word"], evidence=evidence, rule=_rule(c),
        ))  # fmt: skip
    return made


def _rule(c: Comparison) -> str:
    s = c.settings
    count = len(s.optimizers) - 1
    margin = f"{100 * c.margin:.3g}" if s.percent else f"{c.margin:.3g}"
    margin += "" if not s.percent else " point" if margin == "1" else " points"
    corrected = f", corrected for {count} comparisons (Holm)" if count > 1 else ""
    return (
        f"Paired t-tests over {s.seeds} fresh seeds at 5 %{corrected}: a difference from 0, shown "
        f"or contradicted; else equivalent if two one-sided tests put it within {margin} of 0; "
        "else undecided. Intervals have the level of the test."
    )


def _tables(c: Comparison, ranking: Sequence[Row]) -> list[Table]:
    s = c.settings
    form = "{:.1%}" if s.percent else "{:.4g}"
    shown = []
    for line in ranking:
        text = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in line.items()}
        best = c.chosen(line["optimizer"])
        text["setting"] = (
            ", ".join(f"{_words(k)} {v:.3g}" for k, v in best[1].items()) if best else ""
        )
        if "word" in line and line["word"] != "does not apply":
            texts = [s.text(line[key], signed=True) for key in ("difference", "low", "high")]
            text["gain"] = f"{texts[0]} [{texts[1]}, {texts[2]}]"
        shown.append(text)
    first = Table("ranking", f"{s.task}: {s.split} {s.metric}, {s.seeds} fresh seeds", [
        Column("rank", "rank", "{:d}"), Column("optimizer", "optimizer"),
        Column("mean", f"{s.split} {s.metric}", form), Column("sd", "± sd", form),
        Column("gain", f"gain over {s.optimizers[0]}"), Column("word", "verdict"),
    ], shown)  # fmt: skip
    second = Table("cost", "The chosen settings and what they cost", [
        Column("optimizer", "optimizer"), Column("setting", "setting"),
        Column("trials", "trials", "{:d}"), Column("diverged", "diverged", "{:d}"),
        Column("reached", f"reached {s.text(c.target)}", "{:.0%}"),
        Column("steps", "in steps", "{:.0f}"), Column("seconds", "in seconds", "{:.3g}"),
    ], shown)  # fmt: skip
    return [first, second, _trials(c, form)]


def _trials(c: Comparison, form: str) -> Table:
    axes, tried = {}, []
    for name in c.settings.optimizers:
        best = c.chosen(name)
        for trial, (own, values) in c.trials(name).items():
            axes |= dict.fromkeys(own)
            fine = [value for value in values if math.isfinite(value)]
            tried.append({"optimizer": name, **own, "seeds": len(values),
                          "mean": float(np.mean(fine)) if fine else None,
                          "diverged": len(values) - len(fine),
                          "chosen": "best" if best and best[0] == trial else ""})  # fmt: skip
    what = f"validation {c.settings.metric}"
    return Table("trials", f"Every trial: {what}", [
        Column("optimizer", "optimizer"), *(Column(key, _words(key), "{:.3g}") for key in axes),
        Column("seeds", "seeds", "{:d}"), Column("mean", what, form),
        Column("diverged", "diverged", "{:d}"), Column("chosen", "chosen"),
    ], tried)  # fmt: skip


def _words(key: str) -> str:
    return {"learning_rate": "lr"}.get(key, key.replace("_", " "))


def _remarks(c: Comparison) -> Iterator[str]:
    s = c.settings
    batch = f"batches of {s.batch_size}" if s.batch_size else "the batches of the data"
    yield f"{s.about + ' ' if s.about else ''}{s.steps} steps on {batch}, schedule {s.schedule}."
    spaces = "; ".join(
        f"{name}: {text}" for name, text in zip(s.optimizers, s.spaces, strict=False)
    )
    yield (
        f"Every optimizer was tuned with {s.tuning_seeds} seeds a trial on validation data, and "
        f"confirmed with {s.seeds} other seeds. Spaces: {spaces}."
    )
    missing = [name for name in s.optimizers if name not in c.finished]
    if missing:
        yield f"Not finished, so without a verdict: {', '.join(missing)}. Continue with --resume."
    lost = {name: _diverged(c, name) for name in s.optimizers}
    for name, found in c.at_edge().items():
        if lost[name][0] == lost[name][1]:
            continue  # nothing was learnt about the space
        best = c.chosen(name)
        assert best is not None
        parts = [f"{_words(axis)} {best[1][axis]:g} is the {'largest' if above else 'smallest'}"
                 for axis, above in found.items()]  # fmt: skip
        yield f"{name} is at the edge of its space: {', '.join(parts)} that was tried. Try extend."
    for name, (early, tuned, late, confirmed) in lost.items():
        if tuned and early == tuned:
            yield f"{name}: every run diverged. Give it smaller learning rates."
        elif early or late:
            rest = " There is no mean." if late == confirmed else " The mean is that of the others."
            yield (
                f"{name}: {early} of {tuned} tuning runs and {late} of {confirmed} confirming runs "
                f"diverged.{rest if late else ''}"
            )
    if s.split == "validation":
        yield "There is no test data: results are on the data that chose the settings."


def _diverged(c: Comparison, name: str) -> tuple[int, int, int, int]:
    """Return how many tuning runs diverged, of how many, and the same for confirming runs."""
    tuned = [value for _, own in c.trials(name).values() for value in own]
    values = list(c.final(name).values())
    early, late = (sum(map(math.isnan, some)) for some in (tuned, values))
    return early, len(tuned), late, len(values)


def _figure(c: Comparison) -> Figure:
    s = c.settings
    search: list[Row] = []
    for name in s.optimizers:
        found = [(own["learning_rate"], values) for own, values in c.trials(name).values()
                 if "learning_rate" in own and np.isfinite(values).all()]  # fmt: skip
        search += [point(name, rate, values) if len(values) > 1 else
                   {"series": name, "x": rate, "y": values[0]}
                   for rate, values in sorted(found)]  # fmt: skip
    finals = {name: c.final(name) for name in c.finished}
    fine = [seed for seed in next(iter(finals.values()), {})
            if all(math.isfinite(own[seed]) for own in finals.values())]  # fmt: skip
    dots = [{"series": name, "seed": seed, "value": own[seed]}
            for name, own in finals.items() for seed in fine]  # fmt: skip
    what = f"{s.split} {s.metric}"
    panels = [
        Panel("Every trial", lines("learning rate", f"validation {s.metric}", xscale="log",
                                   percent=s.percent, spread="bars", markers=True, join=False),
              search),
        Panel("The chosen settings", lines("step", what, percent=s.percent), _curves(c)),
        Panel("Seed by seed", paired_dots(what, percent=s.percent), dots),
    ]  # fmt: skip
    return Figure(
        name="comparison",
        title=f"{', '.join(s.optimizers)} on {s.task}",
        alt=f"The {s.metric} of every trial against its learning rate, of the chosen settings "
        "during training (mean and standard deviation over fresh seeds), and at the end for "
        "every seed.",
        panels=[panel for panel in panels if panel.rows] or [panels[1]],
        columns=3,
    )


def _curves(c: Comparison) -> list[Row]:
    s, found = c.settings, {}
    for (stage, name, _, _), rows in c.runs.items():
        if stage == CONFIRM and name in c.finished:
            for row in rows:
                value = row[f"{s.split}_{s.metric}"]
                found.setdefault((s.optimizers.index(name), row["step"]), []).append(value)
    return [point(s.optimizers[i], step, values) for (i, step), values in sorted(found.items())
            if None not in values]  # fmt: skip


EXPERIMENT = register(
    Experiment(
        name="compare",
        title="Comparison",
        question="Which of these optimizers is the best on this task, and by how much?",
        setup="Every optimizer has the same number of trials, which are chosen on validation data. "
        "The chosen settings run with fresh seeds and are judged on test data.",
        presets={"demo": Settings(), "quick": Settings(steps=100, trials=4, seeds=8),
                 "tiny": Settings(steps=20, evaluations=2, trials=2, tuning_seeds=1, seeds=2)},
        measure=measure,
        analyse=lambda settings, rows: result(Comparison(settings, rows)),
        partial=True,
    )
)  # fmt: skip
