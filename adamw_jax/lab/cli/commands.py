"""Define the commands as dataclasses: fields are options, docstrings are help texts."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro
from rich.console import Console

import adamw_jax
from adamw_jax.lab.choices import unknown
from adamw_jax.lab.cli.comparing import Compare, Folder, LrFind


@dataclasses.dataclass(frozen=True)
class Demo:
    """Test claims of the Adam literature on small data, with the schedules of the fast.ai article.

    MNIST-1D and the toy problems are generated here; the digits are scikit-learn's scans, with a
    fifth of the training labels drawn at random.

    Attributes:
      quick: Train fewer epochs; this takes about half a minute.
      out: Write the results to this folder; by default a new one under adamw-jax-results/.
      resume: Continue an interrupted run in that folder.
      overwrite: Replace earlier results in that folder, once the new ones are whole.
    """

    quick: bool = False
    out: Folder = None
    resume: bool = False
    overwrite: bool = False

    def __call__(self, console: Console) -> int:
        """Run the command and return the exit status."""
        from adamw_jax.lab.experiments import DEMO

        preset = "quick" if self.quick else "demo"
        return Run(DEMO, preset, self.out, self.resume, self.overwrite).perform(
            console, "Claims of the Adam literature, tested", "demo"
        )


@dataclasses.dataclass(frozen=True)
class Run:
    """Run experiments by name; `adamw-jax list` shows the names.

    Attributes:
      names: The names of the experiments.
      preset: How long to train. Most experiments have demo (the default), quick and tiny; those on
        real networks have cpu (the default), full for a GPU and the data of the paper, trial for a
        few steps of full on made-up data, and tiny.
      out: Write the results to this folder; by default a new one under adamw-jax-results/.
      resume: Continue an interrupted run in that folder.
      overwrite: Replace earlier results in that folder, once the new ones are whole.
      offline: Download no data.
    """

    names: Annotated[tuple[str, ...], tyro.conf.Positional]
    preset: Literal["demo", "quick", "cpu", "full", "trial", "tiny"] | None = None
    out: Folder = None
    resume: bool = False
    overwrite: bool = False
    offline: bool = False

    def __call__(self, console: Console) -> int:
        """Run the command and return the exit status."""
        return self.perform(console, f"Experiments: {', '.join(self.names)}", "run")

    def perform(self, console: Console, title: str, kind: str) -> int:
        """Run the experiments and print the verdicts."""
        from adamw_jax.lab.data import keep_off_the_network
        from adamw_jax.lab.experiments import get_experiment
        from adamw_jax.lab.folders import chosen_folder
        from adamw_jax.lab.runs import perform, say

        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"names must be one or more different experiments, got {self.names}.")
        chosen = [get_experiment(name) for name in self.names]
        presets = [self.preset or experiment.default for experiment in chosen]
        work = [
            (experiment, preset, experiment.settings(preset))
            for experiment, preset in zip(chosen, presets, strict=True)
        ]
        if self.offline:
            keep_off_the_network()
        out = chosen_folder(self.out, kind, self.resume)
        report = perform(title, work, out, console, overwrite=self.overwrite, resume=self.resume)
        say(report, console, tables=kind != "demo")
        return 0


@dataclasses.dataclass(frozen=True)
class List:
    """List optimizers, tasks and experiments.

    Attributes:
      pattern: Show only names that match this shell-style pattern, such as "adam*".
    """

    pattern: Annotated[str, tyro.conf.Positional] = "*"

    def __call__(self, console: Console) -> int:
        """Run the command and return the exit status."""
        from adamw_jax.lab.cli.catalogue import show_list

        return show_list(self.pattern, console)


@dataclasses.dataclass(frozen=True)
class Info:
    """Show the facts about an optimizer: arguments, formula, state, reference.

    Attributes:
      name: The name of the optimizer, with lookahead_ before it for Lookahead.
    """

    name: Annotated[str, tyro.conf.Positional]

    def __call__(self, console: Console) -> int:
        """Run the command and return the exit status."""
        from adamw_jax.lab.cli.catalogue import show_info

        return show_info(self.name, console)


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Show versions and devices, and test one step; exit with 1 if the library does not work."""

    def __call__(self, console: Console) -> int:
        """Run the command and return the exit status."""
        from adamw_jax.lab.cli.doctor import show_doctor

        return show_doctor(console)


@dataclasses.dataclass(frozen=True)
class Data:
    """Download and verify data sets; without names, show which are in the cache folder.

    The folder is named by ADAMW_JAX_DATA. With ADAMW_JAX_OFFLINE=1 nothing is downloaded.

    Attributes:
      names: The names of the data sets.
      offline: Download nothing, only verify.
    """

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    offline: bool = False

    def __call__(self, console: Console) -> int:
        """Run the command and return the exit status."""
        from adamw_jax.lab.cli.catalogue import show_data

        return show_data(self.names, self.offline, console)


@dataclasses.dataclass(frozen=True)
class Report:
    """Rebuild the report from the logs in a folder of results.

    Attributes:
      folder: The folder with the results.
    """

    folder: Annotated[Path, tyro.conf.Positional]

    def __call__(self, console: Console) -> int:
        """Run the command and return the exit status."""
        from adamw_jax.lab.report import build
        from adamw_jax.lab.runs import say

        report = build(self.folder)
        say(report, console, tables=len(report.sections) == 1)
        return 0


COMMANDS = {
    "demo": Demo,
    "run": Run,
    "compare": Compare,
    "lr-find": LrFind,
    "list": List,
    "info": Info,
    "data": Data,
    "doctor": Doctor,
    "report": Report,
}


def run(arguments: Sequence[str]) -> int:
    """Parse and run a command; return its exit status."""
    if list(arguments) in (["--version"], ["-V"]):
        print(f"adamw-jax {adamw_jax.__version__}")
        return 0
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        raise ValueError(unknown("command", arguments[0], COMMANDS))
    kinds = tuple(
        Annotated[kind, tyro.conf.subcommand(name=name)] for name, kind in COMMANDS.items()
    )
    chosen: Any = tyro.cli(
        Union[kinds],  # type: ignore[valid-type]  # noqa: UP007
        prog="adamw-jax",
        args=list(arguments),
        description="Try, compare and look up optimizers for JAX. --version prints the version.",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    command = shlex.join(["adamw-jax", *arguments])
    from adamw_jax.lab.runs import COMMAND

    COMMAND.set(command)
    console = Console() if sys.stdout.isatty() else Console(width=110)
    return chosen(console)
