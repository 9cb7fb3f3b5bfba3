"""Train networks run by run: each run enters the log when it ends, so nothing is lost.

An experiment on a real network makes a list of ``Run`` and calls ``train_runs(runner, runs)``. If
it is interrupted and started again with ``--resume``, runs in the log are not trained again.
``trial`` makes a few steps instead, and measures what whole runs would need.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from adamw_jax.lab.engine import Lane, finite
from adamw_jax.lab.feeding import initial, order_of
from adamw_jax.lab.programs import train_step
from adamw_jax.lab.recipes import Arm, Carrier, tables
from adamw_jax.lab.results import Result, Table, Verdict
from adamw_jax.lab.task import Task, Tree

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run of a network.

    Attributes:
      task: model, loss and data.
      arm: optimizer, schedule, learning rate and other numbers.
      seed: of initial weights, order of examples, dropout and augmentation.
      steps: number of steps.
      points: evaluations, evenly spread; the last is at the end.
      labels: what else identifies the run in the log, such as ``{"epochs": 14}``.
      at_end: (parameters, state) -> more metrics of the final weights, for the last row.
      after: the run with whose final weights this one begins; None for drawn weights.
    """

    task: Task
    arm: Arm
    seed: int
    steps: int
    points: int
    labels: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    at_end: Callable[[Tree, Tree], Mapping[str, Any]] | None = None
    after: Run | None = None

    @property
    def marks(self) -> tuple[int, ...]:
        """The steps after which it is evaluated."""
        count = min(self.points, self.steps)
        return tuple(round(self.steps * (i + 1) / count) for i in range(count))

    @property
    def described(self) -> Row:
        """The beginning of its rows."""
        before = {"after": self.after.arm.name} if self.after else {}
        return {"task": self.task.name, **self.arm.described(), **self.labels, **before,
                "seed": self.seed, "steps": self.steps}  # fmt: skip

    @property
    def whole(self) -> list[Run]:
        """The runs that come before, and this one."""
        return [*(self.after.whole if self.after else ()), self]

    def curves(self) -> tuple[np.ndarray, np.ndarray]:
        """Return learning rates and momenta of all steps."""
        arm = self.arm
        return tables(arm.schedule, arm.learning_rate, self.steps, arm.recipe.momentum)


def train_runs(runner: Any, runs: Sequence[Run]) -> list[Row]:
    """Train runs that are not in the log, and return the rows of all, in the order of the runs.

    Args:
      runner: the ``Runner`` that an experiment is given.
      runs: the runs. Those that they come after need not be listed, and are listed in the rows
        only if they are.

    Returns:
      One row per evaluation: the description of the run, ``step``, ``epoch``, ``seconds``,
      ``train_loss`` and the metrics of every split; the last one also with those of ``at_end``.
    """
    found = _known(runner.earlier)
    missing = [run for run in runs if not _complete(run, found)]
    steps = sum(one.steps for run in missing for one in run.whole)
    if missing:
        runner.progress.begin(missing[0].task.name, steps)

        def train(run: Run) -> list[list[Row]]:
            return _trained(runner, run)

        def keep(run: Run, made: list[list[Row]]) -> None:
            found[_key(run.described)] = {row["step"]: row for row in made[-1]}
            runner.keep(made[-1])

        runner.engine.each(train, missing, keep)
        runner.progress.end()
    return [row for run in runs for row in found[_key(run.described)].values()]


def _trained(runner: Any, run: Run) -> list[list[Row]]:
    """Train a run after those that come before it; return the rows of each."""
    made, ends = [], None
    for one in run.whole:
        last: dict[str, Any] = {}

        def keep(lane: int, params: Tree, state: Tree, last: dict[str, Any] = last) -> None:
            last["weights"] = params, state

        def say(steps: int, metrics: Row, one: Run = one) -> None:
            shown = {name: value for name, value in metrics.items() if name != "train_loss"}
            name, value = next(
                ((n, v) for n, v in shown.items() if n.startswith("validation_")),
                next(iter(shown.items())),
            )
            runner.progress.advance(
                steps,
                f"{one.arm.group}, seed {one.seed}: loss {float(metrics['train_loss'][0]):.3f}, "
                f"{name.replace('_', ' ')} {float(value[0]):.3f}",
            )

        lane = Lane(one.seed, *one.curves(), dict(one.arm.settings), ends)
        (rows,) = runner.engine.train(one.task, one.arm.recipe, [lane], one.marks, 1, say, keep)
        ends = last["weights"]
        if one.at_end:
            more = one.at_end(*ends)
            rows[-1] |= {name: finite(np.asarray(value)) for name, value in more.items()}
        size, batch = one.task.data.size, one.task.data.batch_size
        epoch = batch / size if size and batch else None
        made.append([
            one.described | ({"epoch": row["step"] * epoch} if epoch else {}) | row for row in rows
        ])  # fmt: skip
    return made


def _key(row: Mapping[str, Any], names: Iterable[str] | None = None) -> str:
    return json.dumps({k: row.get(k) for k in names or row}, sort_keys=True)


def _known(rows: Iterable[Row]) -> dict[str, dict[int, Row]]:
    """Return rows by run and step; what describes a run comes before "step" in a row."""
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        names = list(row)[: list(row).index("steps") + 1] if "steps" in row else []
        found.setdefault(_key(row, names), {})[row.get("step", 0)] = row
    return found


def _complete(run: Run, found: Mapping[str, Mapping[int, Row]]) -> bool:
    return set(found.get(_key(run.described), ())) == set(run.marks)


# Trials


def trial(run: Run, steps: int, whole: int) -> list[Row]:
    """Make the first steps of a run, and measure time and memory.

    Args:
      run: the run; of its data only the training examples are used.
      steps: number of steps.
      whole: steps of all runs of the experiment, of which the hours are extrapolated.

    Returns:
      One row per step: ``step``, ``train_loss``, ``seconds`` (the first without compilation),
      and, the same in all, ``parameters``, ``bytes`` (what XLA plans for a step: arguments,
      results and temporary arrays), ``peak_bytes`` (as the device counted, None on a CPU) and
      ``whole_steps``.
    """
    task, arm = run.task, run.arm
    params, state = initial(task, run.seed)
    tx = arm.recipe.build(Carrier(*map(jax.numpy.asarray, run.curves())), dict(arm.settings))
    size, batch_size = task.data.size, task.data.batch_size
    if size is not None:
        order = order_of(size, run.seed, steps, batch_size or 1)
        batches = (jax.tree.map(lambda a, i=i: a[i], task.data.train) for i in order)
    else:
        batches = task.data.batches(run.seed)

    def step(carry: Any, batch: Any, key: jax.Array) -> Any:
        return train_step(task, tx, carry, batch, key)

    carry = jax.tree.map(jax.numpy.array, (params, state, tx.init(params)))
    program, rows = None, []
    for number, batch in zip(range(1, steps + 1), batches, strict=False):
        args = (carry, batch, jax.random.fold_in(jax.random.key(run.seed), number))
        program = program or jax.jit(step, donate_argnums=0).lower(*args).compile()
        clock = time.perf_counter()
        carry, loss = jax.block_until_ready(program(*args))
        rows.append({"step": number, "train_loss": finite(loss),
                     "seconds": time.perf_counter() - clock})  # fmt: skip
    assert program is not None
    plan = program.memory_analysis()
    planned = sum(getattr(plan, f"{name}_size_in_bytes") for name in ("argument", "output", "temp"))
    counted = jax.devices()[0].memory_stats() or {}
    facts = {
        "task": task.name,
        **arm.described(),
        **run.labels,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "bytes": planned - plan.alias_size_in_bytes if plan else None,
        "peak_bytes": counted.get("peak_bytes_in_use"),
        "whole_steps": whole,
    }
    return [facts | row for row in rows]


def trial_result(rows: Sequence[Row], device: str = "this machine") -> Result:
    """Return what a report shows of trials: one line per task and optimizer, and verdicts."""
    from adamw_jax.lab.experiments.parts import columns, met

    lines, verdicts = [], []
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["group"]), []).append(row)
    for (task, group), own in groups.items():
        losses = [row["train_loss"] for row in own]
        seconds = float(np.median([row["seconds"] for row in own]))
        falls = None not in losses and losses[-1] < losses[0]
        lines.append({
            "task": task, "group": group, "parameters": own[0]["parameters"], "steps": len(own),
            "first": losses[0], "last": losses[-1], "seconds": seconds,
            "gigabytes": (own[0]["peak_bytes"] or own[0]["bytes"] or 0) / 2**30,
            "hours": seconds * own[0]["whole_steps"] / 3600, "whole": own[0]["whole_steps"],
        })  # fmt: skip
        verdicts.append(_falls(met, task, group, losses, falls))
    shown = columns(
        "task | group: optimizer | parameters {:,d} | steps {:d} | first: first loss {:.3f} | "
        "last: last loss {:.3f} | seconds: s per step {:.3g} | gigabytes: GiB of memory {:.1f} | "
        "whole: steps of all runs {:,d} | hours: hours, extrapolated {:.3g}"
    )
    remark = (
        "This is a trial on made-up data of the true shapes, not the experiment. The hours are "
        f"extrapolated from the median step on {device}; they were not measured."
    )
    return Result(verdicts, [Table("trial", "A few steps of the full preset", shown, lines)],
                  remarks=[remark])  # fmt: skip


def _falls(met: Any, task: str, group: str, losses: Sequence[Any], falls: bool) -> Verdict:
    return met(
        f"The full preset trains with {group}", task, falls,
        f"Loss {', '.join('diverged' if x is None else f'{x:.3f}' for x in losses)}.",
        "The training loss of the last step is below that of the first",
    )  # fmt: skip
