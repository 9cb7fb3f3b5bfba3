"""What a row of the golden table is, and the arguments that need more than another name."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adamw_jax as aj
from tests.golden_cases import Case

Options = dict[str, Any]
Translation = Callable[[Any, Case], Options]


@dataclasses.dataclass(frozen=True)
class Only:
    """The values of a hyperparameter that change nothing; the library does not offer the others."""

    values: tuple[Any, ...]


Name = str | Translation | Only | None
"""An argument's name; a function that gives arguments; the values that need none; or None where the
recorded schedules, or the choice of the row, say it already."""
Recorded = str | Callable[[Case], np.ndarray | None]
"""An array of the file, or a function that makes one of several; None where the file lacks it."""


@dataclasses.dataclass(frozen=True)
class Row:
    """How one form of a system is written with the public functions.

    Attributes:
      function: the public function.
      names: hyperparameter -> argument, all that the source has.
      options: arguments that this form always has.
      defaults: hyperparameters that the source takes where the manifest does not name them.
      recorded: argument -> recorded values at each step, used where the file has them.
      own: this library's schedules, which take the place of the recorded ones on demand, or where
        the file lacks one; None where the manifest does not say how the schedule came about.
      own_share: share of the change that they may be off by, where the source computed its
        schedule in float32; None for the manifest's tolerance.
      when: hyperparameters that choose the row.
      has: hyperparameters that choose the row by being there.
      says: words of the manifest that choose the row.
      derived: arguments that the manifest tells in words only.
    """

    function: Callable[..., Any]
    names: Mapping[str, Name]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    recorded: Mapping[str, Recorded] = dataclasses.field(default_factory=dict)
    own: Callable[[Case], Options | None] | None = None
    own_share: float | None = None
    when: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    has: tuple[str, ...] = ()
    says: str = ""
    derived: Callable[[Case], Options] | None = None

    def told(self, case: Case) -> Case:
        """The case with the source's defaults."""
        return case.changed(hyperparameters={**self.defaults, **case.hyperparameters})

    def fits(self, case: Case) -> bool:
        """Whether the row is that of the case."""
        h = self.told(case).hyperparameters
        chosen = all(h.get(k) == v for k, v in self.when.items()) and set(self.has) <= set(h)
        return chosen and self.says in case.says

    def own_schedules(self, case: Case) -> Options | None:
        """The arguments that replace the recorded ones, or None."""
        return None if self.own is None else self.own(self.told(case))

    def found(self, case: Case) -> dict[str, np.ndarray]:
        """The recorded values that the file has, by argument."""
        told = self.told(case)
        arrays = {
            argument: told.arrays.get(source) if isinstance(source, str) else source(told)
            for argument, source in self.recorded.items()
        }
        return {argument: array for argument, array in arrays.items() if array is not None}

    def share(self, case: Case, own_schedules: bool = False) -> float | None:
        """``own_share`` where the own schedules are used."""
        own_schedules |= len(self.found(case)) < len(self.recorded)
        return self.own_share if own_schedules else None

    def arguments(self, case: Case, own_schedules: bool = False) -> Options:
        """All arguments of ``function``."""
        told = self.told(case)
        options = dict(self.options)
        for key, value in told.hyperparameters.items():
            options.update(self._translated(key, value, told))
        if self.derived is not None:
            options.update(self.derived(told))
        found = self.found(case)
        options.update({argument: per_step(array) for argument, array in found.items()})
        if own_schedules or len(found) < len(self.recorded):
            options.update(self.own_schedules(case) or {})
        return options

    def _translated(self, key: str, value: Any, case: Case) -> Options:
        assert key in self.names or key in self.when, (
            f"{case.label}: no argument for the hyperparameter {key!r}={value!r} of the system "
            f"{case.system!r} of {case.source!r}"
        )
        name = self.names.get(key)
        if isinstance(name, Only):
            assert value in name.values, not_offered(key, value, case)
            return {}
        if callable(name):
            return name(value, case)
        return {} if name is None else {name: recorded_or_number(value, case)}


def not_offered(key: str, value: Any, case: Case) -> str:
    """What is said of a form of the source that this library does not have."""
    return (
        f"{case.label}: this library does not offer {key}={value!r} of the system "
        f"{case.system!r} of {case.source!r}"
    )


def per_step(array: np.ndarray) -> Callable[[Any], jax.Array]:
    """A recorded array as a schedule."""
    return lambda count: jnp.asarray(array, jax.dtypes.canonicalize_dtype(float))[count]


def recorded_or_number(value: Any, case: Case) -> Any:
    """A hyperparameter as it is, or the recorded array that it refers to ("per-step array lr")."""
    if not isinstance(value, str):
        return value
    reference = re.fullmatch(r"(?:per-step )?array (\w+)(?: \(.*\))?", value)
    assert reference, f"{case.label}: cannot read the hyperparameter {value!r}"
    assert reference[1] in case.arrays, f"{case.label}: the file lacks {reference[1]!r}"
    return per_step(case.arrays[reference[1]])


# Arguments that need more than another name.


def rates(*names: str) -> Translation:
    """A tuple of numbers under these names."""
    return lambda value, case: dict(zip(names, value, strict=True))


def where(**words: Mapping[Any, Any]) -> Translation:
    """A value under another word, by the argument that takes it."""
    ((argument, words_of),) = words.items()

    def translate(value: Any, case: Case) -> Options:
        assert value in words_of, not_offered(argument, value, case)
        return {argument: words_of[value]}

    return translate


def decay_if(flag: str) -> Translation:
    """The coefficient as decoupled decay if the flag of the case says so, as L2 otherwise."""
    return lambda value, case: {"weight_decay" if case.hyperparameters[flag] else "l2": value}


def l2_if(flag: str) -> Translation:
    """The coefficient as L2 if the flag of the case says so, as decoupled decay otherwise."""
    return lambda value, case: {"l2" if case.hyperparameters[flag] else "weight_decay": value}


def dtype(value: Any, case: Case) -> Options:
    return {"mu_dtype": None if value is None else jnp.dtype(value)}


def dampening(value: float, case: Case) -> Options:
    """Of the entries of a buffer: without momentum there is none."""
    return {"dampening": value or None} if case.hyperparameters["momentum"] else {}


def ascent(value: bool, case: Case) -> Options:
    """``maximize`` turns the gradient round before all else."""
    return {"before": optax.scale(-1.0)} if value else {}


def torch_clip(limit: float | None, case: Case) -> Options:
    """``torch.nn.utils.clip_grad_norm_``."""
    return {"before": aj.clip_gradient(limit, 1e-6)} if limit else {}


def whole_clip(limit: float | None, case: Case) -> Options:
    """Keras' ``global_clipnorm``."""
    return {} if limit is None else {"before": aj.clip_gradient(limit, 0.0)}


def decayed_leaves(value: bool, case: Case) -> Options:
    """fastai v1's ``bn_wd``: False leaves biases and norms undecayed, as the manifest names them.

    Where it does not, they are the leaves with fewer than two axes.
    """
    if value:
        return {}
    told = re.search(r"([\w, ]+) (?:is|are) in the decayed group", case.says)
    named = re.split(r"\W+", told[1]) if told else []
    axes = {leaf: case.arrays[f"params_0_{leaf}"].ndim for leaf in case.leaves}
    return {"mask": {leaf: leaf in named if told else axes[leaf] > 1 for leaf in case.leaves}}


def same(*names: str) -> dict[str, Name]:
    """Hyperparameters whose names are those of the arguments."""
    return {name: name for name in names}


def labels(*names: str) -> dict[str, Name]:
    """Hyperparameters that say nothing more, as how a loop was carried out."""
    return dict.fromkeys(names)
