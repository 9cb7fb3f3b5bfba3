"""The shared table of what the tests run: every optimizer of the registry, and its variants.

A new optimizer enters every table by being registered. Its variants follow from its signature:
each switch is flipped, each choice taken, each optional number given.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamw_jax
from adamw_jax._core.state import Hyperparams
from adamw_jax.direction._decay import FORMS
from adamw_jax.moments._correct_bias import CONVENTIONS
from adamw_jax.moments._delay_second import NUMERATORS
from adamw_jax.moments._factor_axes import AXES
from adamw_jax.moments._factored_squares import EPS_FORMS
from adamw_jax.moments._friction import VARIANTS as FRICTIONS
from adamw_jax.moments._rectify_variance import FALLBACKS
from adamw_jax.optimizers._adan import STARTS
from adamw_jax.optimizers._amsgrad import MAXIMA
from adamw_jax.update._average_iterates import KINDS

CHOICES = {
    "decay": FORMS,
    "bias_correction": CONVENTIONS,
    "below": FALLBACKS,
    "maximum": MAXIMA,
    "axes": AXES,
    "eps_form": EPS_FORMS,
    "numerator": NUMERATORS,
    "variant": FRICTIONS,
    "start": STARTS,
    "kind": KINDS,
}
"""The words that a keyword may take, where it takes words."""

COMPANIONS: dict[str, dict[str, Any]] = {
    "decay": {"weight_decay": 0.1},
    "nesterov": {"momentum": 0.9},
    "dampening": {"momentum": 0.9},
    "mu_dtype": {"b1": 0.9},
    "average_decay": {"kind": "ema"},
    "average_weight": {"kind": "weighted"},
    "window": {"kind": "last"},
}
"""What else must be given, where an optimizer takes it, for a keyword to have an effect."""

NUMBERS = {
    "weight_decay": 0.1,
    "l2": 0.1,
    "eps_root": 1e-6,
    "dampening": 0.1,
    "max_grad_norm": 1.0,
    "limit": 1.0,
    "restart_period": 2,
    "alpha_warmup": 2,
    "b3_warmup": 2,
    "r": 0.5,
    "b1": 0.9,
    "b2": 0.99,
    "momentum": 0.9,
    "max_scale": 1.0,
    "max_b2": 0.9,
    "min_weight_norm": 0.1,
    "max_weight_norm": 2.0,
    "min_ratio": 0.1,
    "max_ratio": 5.0,
    "average_decay": 0.9,
    "average_weight": 2.0,
    "window": 2,
}
"""Values for the numbers whose default is None."""

FACTORED = ("adafactor",)
"""Optimizers whose state is not shaped like the parameters, and smaller."""

SHARED = (
    *("weight_decay", "l2", "decay", "state_dtype", "amsgrad", "rectify", "eps_hat"),
    "bias_correction",
)
"""Common keywords, which are the same stages everywhere: they vary for the ``REPRESENTATIVES``; in
the others ``test_combinations`` has them."""

REPRESENTATIVES = ("adam", "adamax", "adamw", "radam", "sgdw")

DTYPES = {"mu_dtype": jnp.bfloat16, "state_dtype": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row: an optimizer and its options.

    Attributes:
      label: what the test is called.
      name: a name that ``create`` takes.
      options: keyword arguments.
    """

    label: str
    name: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def make(self, learning_rate: Any = 0.05, **more: Any) -> Any:
        """The transformation."""
        options = {**self.example, **self.options, **more}
        return with_needs(self.info, adamw_jax.create(self.name, learning_rate, **options))

    @property
    def info(self) -> adamw_jax.OptimizerInfo:
        """The registry's row, without Lookahead."""
        return adamw_jax.info(self.name.removeprefix("lookahead_"))

    @property
    def degree(self) -> float | None:
        """The power of the gradient's scale that the step goes with, if it is one."""
        return self.info.degree

    @property
    def state_values(self) -> int:
        """Values of state per parameter."""
        name = self.name.removeprefix("lookahead_")
        return adamw_jax.info(name).state_values + (name != self.name)

    @property
    def scope(self) -> str:
        """What a step looks at to move an element: the element, its leaf, or the whole tree."""
        return self.info.scope

    @property
    def keeps_weights(self) -> bool:
        """Whether its state owns weights, as Lookahead's and schedule-free's; a tree has one."""
        state = jax.eval_shape(self.make().init, sample_params())
        return any(hasattr(type(memory), "owns") for memory in state.stages.values())

    @property
    def example(self) -> dict[str, Any]:
        """Values of the arguments without a default."""
        return self.info.example

    @property
    def factory(self) -> Any:
        """The public function, without Lookahead."""
        make = self.info.factory

        @functools.wraps(make)
        def factory(*args: Any, **kwargs: Any) -> Any:
            return with_needs(self.info, make(*args, **kwargs))

        return factory

    @property
    def keywords(self) -> dict[str, inspect.Parameter]:
        """Its arguments by name."""
        return dict(inspect.signature(self.factory).parameters)

    @property
    def adaptive(self) -> bool:
        """Whether the step is divided by a second moment, so that the gradient's scale cancels."""
        return "eps" in self.keywords

    def exact(self, **more: Any) -> dict[str, Any]:
        """Options that switch every eps off."""
        off: dict[str, Any] = {"eps": 0.0}
        if self.keywords.get("eps_root") and self.keywords["eps_root"].default is not None:
            off["eps_root"] = 0.0
        return {**(off if self.adaptive else {}), **more}


def with_needs(row: adamw_jax.OptimizerInfo, tx: Any) -> Any:
    """``tx``, which measures a loss of 1 where a step brings none (some wrappers cannot)."""
    if not row.needs:
        return tx

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        return tx.update(updates, state, params, **{**EXTRA, **extra})

    return adamw_jax.Composed.of(tx.declaration, tx.init, update)


def _tails() -> dict[str, Any]:
    compose, adamw, update = adamw_jax.compose, adamw_jax.adamw(0.1), adamw_jax.update
    meter = adamw_jax.diagnostics.measure_noise_scale(1, 2)
    free = update.schedule_free(0.1)
    kinds = {kind: adamw_jax.average_iterates(kind=kind) for kind in KINDS}
    return {
        "lookahead": compose(adamw, adamw_jax.lookahead(sync_period=2)),
        **{f"average_iterates, {kind}": compose(adamw, tail) for kind, tail in kinds.items()},
        "schedule_free": compose(adamw_jax.sgdw(0.1, momentum=None), free),
        "probe": adamw_jax.probe(adamw_jax.clip_gradient(1.0), adamw),
        "measure_noise_scale": compose(meter, adamw),
        "stochastic_rounding": compose(adamw, update.stochastic_rounding(0)),
        "compensated_rounding": compose(adamw, update.compensated_rounding()),
    }


TAILS = _tails()
"""A recipe with each tail that does not need workers; its name begins the label."""

WITH_WORKERS = ("compressed_mean", "local_sgd")
"""The other tails."""


EXTRA = {"value": 1.0}
"""What every step is given, though few optimizers need it: it passes through every wrapper."""


def plain_entries() -> list[Entry]:
    """Every optimizer with its defaults, one with factors of small leaves, one with Lookahead."""
    entries = [Entry(name, name) for name in adamw_jax.list_optimizers()]
    small = {"min_dim_size_to_factor": 1, "relative_step": True}
    return [
        *entries,
        Entry("adafactor-factored", "adafactor", small),
        Entry("lookahead_adamw", "lookahead_adamw", {"sync_period": 2}),
    ]


def with_direction() -> list[str]:
    """Names of the optimizers that have a ``scale_by_...``."""
    names = adamw_jax.list_optimizers()
    return [name for name in names if adamw_jax.info(name).direction is not None]


def numeric_arguments(entry: Entry) -> list[str]:
    """The arguments that are a number or a schedule."""
    return [
        name
        for name, parameter in entry.keywords.items()
        if "ScalarOrSchedule" in _annotation(parameter)
    ]


def whole_numbers(entry: Entry) -> tuple[str, ...]:
    """The arguments that count something, which ``inject_hyperparams`` must leave alone."""
    return tuple(
        name for name, p in entry.keywords.items() if _annotation(p) in ("int", "int | None")
    )


def variants() -> tuple[list[Entry], list[Entry]]:
    """Every optimizer with one option changed: those it takes, and those it refuses."""
    taken, refused = [], []
    for name in adamw_jax.list_optimizers():
        keywords = inspect.signature(adamw_jax.info(name).factory).parameters
        for argument, parameter in keywords.items():
            if argument in SHARED and name not in REPRESENTATIVES:
                continue
            for value in _other_values(argument, parameter):
                shown = getattr(value, "__name__", str(value))
                beside = {k: v for k, v in COMPANIONS.get(argument, {}).items() if k in keywords}
                entry = Entry(f"{name}-{argument}={shown}", name, {**beside, argument: value})
                try:
                    entry.make()
                except ValueError:
                    refused.append(entry)
                else:
                    taken.append(entry)
    return taken, refused


def _other_values(name: str, parameter: inspect.Parameter) -> list[Any]:
    default = parameter.default
    if name in CHOICES and isinstance(default, str):
        return [word for word in CHOICES[name] if word != default]
    if isinstance(default, bool):
        return [not default]
    if name in DTYPES:
        return [DTYPES[name]]
    if name in NUMBERS and default is None:
        return [NUMBERS[name]]
    return []


def _annotation(parameter: inspect.Parameter) -> str:
    return str(parameter.annotation)


PLAIN = plain_entries()
VARIANTS, REFUSED = variants()
EVERY = [*PLAIN, *VARIANTS]


def label(entry: Entry) -> str:
    """For ``pytest.mark.parametrize(..., ids=label)``."""
    return entry.label


TYPICAL = ("adamw", "lookahead_adamw", "radam", "adafactor", "koala_m")
"""The optimizers that ``make test`` takes from a long table; ``make check`` runs the other rows."""


def rows(entries: list[Entry]) -> list[Any]:
    """A long table for ``pytest.mark.parametrize``: every entry, those not typical marked slow."""
    slow = pytest.mark.slow
    return [pytest.param(e, id=e.label, marks=() if e.name in TYPICAL else slow) for e in entries]


# What the tables run on: a small tree with a matrix, a vector and a scalar, and gradients whose
# elements differ in scale, two of them always 0.


def sample_params(dtype: Any = jnp.float32) -> dict[str, Any]:
    """Parameters; complex where the dtype is."""
    values = {
        "dense": {"bias": [0.5, -1.0, 0.0], "kernel": [[1.0, -2.0, 3.0], [0.25, 0.0, -0.5]]},
        "scale": 1.5,
    }
    return _arrays(values, dtype)


@functools.cache
def _random_gradients(steps: int) -> Any:
    rng = np.random.default_rng(0)
    scale = {
        "bias": np.array([1.0, 1e-2, 0.0]),
        "kernel": np.array([[1.0, 0.1, 10.0], [1.0, 0.0, 1e-2]]),
    }
    dense = {k: rng.normal(size=(steps, *v.shape)) * v for k, v in scale.items()}
    return {"dense": dense, "scale": rng.normal(size=steps)}


def sample_gradients(steps: int = 3, dtype: Any = jnp.float32) -> Any:
    """Gradients of several steps, stacked along the first axis."""
    return _arrays(_random_gradients(steps), dtype)


def _arrays(values: Any, dtype: Any) -> Any:
    phase = np.exp(0.7j) if jnp.issubdtype(dtype, jnp.complexfloating) else 1.0
    return jax.tree.map(
        lambda x: jnp.asarray(np.asarray(x) * phase, dtype),
        values,
        is_leaf=lambda x: isinstance(x, list),
    )


def at(gradients: Any, step: int) -> Any:
    """The gradients of one step."""
    return jax.tree.map(lambda g: g[step], gradients)


def one_step(tx: Any) -> Any:
    """A step ``(params, state, gradient) -> (params, state)``, not jitted."""

    update = optax.with_extra_args_support(tx).update

    def step(params: Any, state: Any, gradient: Any) -> tuple[Any, Any]:
        updates, state = update(gradient, state, params, **EXTRA)
        return optax.apply_updates(params, updates), state

    return step


FEW = 10
"""Steps up to which evaluating them one operation at a time is quicker than compiling them."""


def run(tx: Any, params: Any, gradients: Any) -> tuple[Any, Any]:
    """Parameters and state after all gradients: compiled as a scan, or traced once if few."""
    number = len(jax.tree.leaves(gradients)[0])
    return (_traced if number <= FEW else _scanned)(tx, params, gradients)


@functools.partial(jax.jit, static_argnums=0)
def _scanned(tx: Any, params: Any, gradients: Any) -> tuple[Any, Any]:
    step = one_step(tx)
    carry, _ = jax.lax.scan(
        lambda carry, g: (step(*carry, g), None), (params, tx.init(params)), gradients
    )
    return carry


def _traced(tx: Any, params: Any, gradients: Any) -> tuple[Any, Any]:
    start, first = (params, tx.init(params)), at(gradients, 0)
    step = one_operation_at_a_time(one_step(tx), *start, first)
    number = len(jax.tree.leaves(gradients)[0])
    return functools.reduce(lambda carry, i: step(*carry, at(gradients, i)), range(number), start)


def one_operation_at_a_time(function: Any, *example: Any) -> Any:
    """``function``, traced once as for a compiler; XLA caches its operations across the tests.

    What only a compiler could get wrong is left to the tests that compile a step themselves.
    """
    traced, shape = jax.make_jaxpr(function, return_shape=True)(*example)
    flat, structure = jax.extend.core.jaxpr_as_fun(traced), jax.tree.structure(shape)

    def evaluate(*args: Any) -> Any:
        with jax.disable_jit():
            return jax.tree.unflatten(structure, flat(*jax.tree.leaves(args)))

    return evaluate


@functools.cache
def _reference(label_: str, steps: int) -> Any:
    entry = next(e for e in EVERY if e.label == label_)
    return run(entry.make(), sample_params(), sample_gradients(steps))


def reference(entry: Entry, steps: int = 3) -> tuple[Any, Any]:
    """Parameters and state of an entry after the sample gradients, computed once per process."""
    return _reference(entry.label, steps)


def assert_close(got: Any, expected: Any, rtol: float = 1e-5, atol: float = 1e-7) -> None:
    """Equal trees up to rounding."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(_plain(a), _plain(b), rtol=rtol, atol=atol),
        got,
        expected,
    )


def assert_equal(got: Any, expected: Any) -> None:
    """Equal trees, bit by bit, NaN equal to NaN."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(_plain(a), _plain(b)), got, expected)


def assert_finite(tree: Any) -> None:
    """No NaN and no infinity."""
    for leaf in jax.tree.leaves(tree):
        assert np.all(np.isfinite(_plain(leaf))), leaf


def accumulators(state: Any) -> list[Any]:
    """The arrays of a state but for its scalars and live hyperparameters."""
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, Hyperparams))
    return [x for x in nodes if not isinstance(x, Hyperparams) and jnp.ndim(x)]


def avals(tree: Any) -> Any:
    """Shapes, dtypes and weak types of a tree, to compare."""
    return jax.tree.map(lambda x: (x.shape, str(x.dtype), bool(x.weak_type)), tree)


def _plain(x: Any) -> np.ndarray:
    array = np.asarray(x)
    narrow = array.dtype.kind == "V" or array.dtype.name in ("bfloat16", "float16")
    return array.astype(np.float32) if narrow else array
