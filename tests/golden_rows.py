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
Name = str | Translation | None
"""An argument's name; a function that gives arguments; or None where the recorded schedules, or the
choice of the row, say it already."""


@dataclasses.dataclass(frozen=True)
class Row:
    """How one form of a system is written with the public functions.

    Attributes:
      function: the public function.
      names: hyperparameter -> argument.
      options: arguments that this form always has.
      recorded: argument -> recorded array of its value at each step.
      own: the arguments of ``recorded`` from this library's schedules instead; None where the
        manifest does not say how the schedule came about.
      own_rtol: tolerance with them, where the source computed its schedule in float32.
      when: hyperparameters that choose the row.
      says: words of the manifest that choose the row.
    """

    function: Callable[..., Any]
    names: Mapping[str, Name]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    recorded: Mapping[str, str] = dataclasses.field(default_factory=dict)
    own: Callable[[Case], Options | None] | None = None
    own_rtol: float | None = None
    when: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    says: str = ""

    def fits(self, case: Case) -> bool:
        """Whether the row is that of the case."""
        h = case.hyperparameters
        return all(h.get(k) == v for k, v in self.when.items()) and self.says in case.says

    def own_schedules(self, case: Case) -> Options | None:
        """The arguments that replace the recorded ones, or None."""
        return None if self.own is None else self.own(case)

    def arguments(self, case: Case, own_schedules: bool = False) -> Options:
        """All arguments of ``function``."""
        h, options = case.hyperparameters, dict(self.options)
        unknown = sorted(set(h) - set(self.names) - set(self.when))
        assert not unknown, f"{case.label}: no argument for the hyperparameters {unknown}"
        for key, value in h.items():
            name = self.names.get(key)
            if callable(name):
                options.update(name(value, case))
            elif name is not None:
                options[name] = recorded_or_number(value, case)
        options.update({k: per_step(case.arrays[array]) for k, array in self.recorded.items()})
        return {**options, **(self.own_schedules(case) or {})} if own_schedules else options


def per_step(array: np.ndarray) -> Callable[[Any], jax.Array]:
    """A recorded array as a schedule."""
    return lambda count: jnp.asarray(array, jax.dtypes.canonicalize_dtype(float))[count]


def recorded_or_number(value: Any, case: Case) -> Any:
    """A hyperparameter as it is, or the recorded array that it refers to ("per-step array lr")."""
    if not isinstance(value, str):
        return value
    reference = re.fullmatch(r"(?:per-step )?array (\w+)(?: \(.*\))?", value)
    assert reference, f"{case.label}: cannot read the hyperparameter {value!r}"
    return per_step(case.arrays[reference[1]])


# Arguments that need more than another name.


def betas(value: Any, case: Case) -> Options:
    return dict(zip(("b1", "b2"), value, strict=True))


def inner_state(value: str, case: Case) -> Options:
    return {"inner_state": {"none": "keep"}.get(value, value)}


def reset_state(value: bool, case: Case) -> Options:
    return {"inner_state": "reset" if value else "keep"}


def fallback(value: bool, case: Case) -> Options:
    return {"below": "momentum" if value else "skip"}


def only_matrices(value: bool, case: Case) -> Options:
    """fastai v1's ``bn_wd``: False leaves biases and norms, here b and s, undecayed."""
    return {} if value else {"mask": {leaf: leaf == "w" for leaf in case.leaves}}


def decay_or_l2(flag_for_l2: bool) -> Translation:
    """A flag that says whether the ``wd`` of the case goes into the gradient."""

    def translate(value: bool, case: Case) -> Options:
        where = "l2" if value == flag_for_l2 else "weight_decay"
        return {where: case.hyperparameters["wd"]}

    return translate


def torch_clip(limit: float, case: Case) -> Options:
    """``torch.nn.utils.clip_grad_norm_``: a factor of at most limit / (norm + 1e-6), up to 1."""

    def clip(updates: Any, state: Any, params: Any = None) -> Any:
        norm = optax.tree.norm(updates)
        factor = jnp.minimum(jnp.ones([], norm.dtype), limit / (norm + 1e-6))
        return jax.tree.map(lambda g: g * factor, updates), state

    before = optax.GradientTransformation(lambda params: optax.EmptyState(), clip)
    return {"before": before} if limit else {}


def after(before: Any = None, *, optimizer: Callable[..., Any] = aj.adam, **options: Any) -> Any:
    """An optimizer after another transformation."""
    return aj.compose(before, optimizer(**options))


TORCH: dict[str, Name] = {"lr": "learning_rate", "betas": betas, "eps": "eps", "amsgrad": "amsgrad"}
EPS_HAT = {"eps_hat": True}

INNER: dict[str, tuple[Callable[..., Any], dict[str, str], Options]] = {
    "SGD": (aj.sgdw, {"momentum": "momentum", "weight_decay": "l2"}, {"momentum": None}),
    "torch Adam": (aj.adam, {"weight_decay": "l2"}, {}),
    "torch AdamW": (aj.adamw, {"weight_decay": "weight_decay"}, {"weight_decay": 1e-2}),
    "official RAdam": (aj.radam, {"weight_decay": "weight_decay"}, EPS_HAT),
    "optax.adam": (aj.adam, {}, {}),
}
"""What Lookahead stands around, in the words of the manifest: names and defaults of that source."""


def inner(text: str, case: Case) -> Options:
    """``"SGD lr=1e-3 momentum=0.9"``, ``"optax.adam(0.01)"``."""
    text = re.sub(r"^(optax\.\w+)\(([^=,]+)\)$", r"\1 lr=\2", text)
    kind, words = split_words(text)
    assert kind in INNER, f"{case.label}: unknown inner optimizer {text!r}"
    function, names, defaults = INNER[kind]
    return {"inner": function(**{**defaults, **from_words(words, {**TORCH, **names}, case)})}


def adam_in_words(text: str, case: Case) -> Options:
    """``"Adam betas=(0.9,0.99) eps=1e-8"``."""
    kind, words = split_words(text)
    assert kind == "Adam", f"{case.label}: unknown optimizer {text!r}"
    return from_words(words, TORCH, case)


def split_words(text: str) -> tuple[str, list[str]]:
    """A name and the ``key=value`` words after it."""
    kind = text.partition("=")[0].rpartition(" ")[0]
    return kind, text.removeprefix(kind).split()


def from_words(words: list[str], names: Mapping[str, Name], case: Case) -> Options:
    """Arguments from ``key=value`` words, the value a number or several in brackets."""
    options: Options = {}
    for key, value in (word.split("=") for word in words):
        name = names.get(key)
        assert name is not None, f"{case.label}: unknown {key!r} in {words}"
        numbers = [float(number) for number in value.strip("()").split(",")]
        options.update(name(numbers, case) if callable(name) else {name: numbers[0]})
    return options


def ranger(sync_period: int, slow_step_size: float, **options: Any) -> Any:
    """Lookahead around RAdam."""
    return aj.lookahead(aj.radam(**options), sync_period, slow_step_size)


def authors_normalised(value: float, case: Case) -> Options:
    """Normalised decay of the recorded period: wd / sqrt(updates in it)."""
    updates = case.hyperparameters["nBatches"] * case.arrays["Te"]
    return {"weight_decay": per_step(value / np.sqrt(updates))}


def scaled_eta(value: str, case: Case) -> Options:
    """The paper's alpha eta_t, and alpha as the base by which the decay divides it again."""
    alpha = case.hyperparameters["alpha"]
    return {
        "learning_rate": per_step(alpha * case.arrays["eta"]),
        "base_learning_rate": alpha,
    }
