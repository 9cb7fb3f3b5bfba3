"""Parameters of any pytree that optax takes give the steps that a dict of the same arrays gives.

The leaves of every form have the same four shapes, so that a shape tells which one a leaf is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import adamw_jax
from adamw_jax import (
    Rule,
    adafactor,
    adam,
    adamw,
    amsgrad_max,
    average_iterates,
    compensated_rounding,
    compose,
    decoupled_decay,
    except_named,
    lamb,
    lars,
    lookahead,
    matrices_only,
    only,
    pack_small_leaves,
    parameter_rules,
    probe,
    quantize_state,
    sgdw,
    stochastic_rounding,
)
from adamw_jax.numerics import leaf_names, unbox
from adamw_jax.state import Hyperparams
from tests.catalogue import EXTRA, PLAIN, Entry, assert_close, rows

SHAPES = ((3, 2), (3,), (2, 3), (2,))


@functools.cache
def values(seed: int) -> dict[tuple[int, ...], Any]:
    """An array of each shape."""
    rng = np.random.default_rng(seed)
    return {shape: jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in SHAPES}


def filled(tree: Any, seed: int) -> Any:
    """``tree`` with arrays of ``values`` for its arrays; what is none stays."""
    return jax.tree.map(lambda x: values(seed)[x.shape] if eqx.is_array(x) else x, tree)


def by_shape(tree: Any) -> dict[str, Any]:
    """The arrays of a tree, to compare with those of another form."""
    return {str(jnp.shape(x)): x for x in jax.tree.leaves(tree)}


class Attention(NamedTuple):
    """A parameter called ``value``, as in many models."""

    query: Any
    key: Any
    value: Any
    bias: Any


class Dense(nnx.Module):
    """Two layers of Flax NNX."""

    def __init__(self) -> None:
        self.first = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        self.value = nnx.Linear(3, 2, rngs=nnx.Rngs(0))


def linen_boxes(box: Any) -> Any:
    """Parameters of Flax Linen with names of axes."""

    def one(x: Any) -> Any:
        return box(x, names=("model",) * x.ndim)

    a, b, c, d = map(one, values(0).values())
    return {"first": {"kernel": a, "bias": b}, "value": {"kernel": c, "bias": d}}


MLP = eqx.nn.MLP(2, 2, 3, 1, key=jax.random.key(0))
LEAVES = tuple(values(0).values())

BOXES: dict[str, Callable[[], Any]] = {
    "nnx": lambda: nnx.state(Dense(), nnx.Param),
    "linen": lambda: linen_boxes(linen.Partitioned),
    "linen logical": lambda: linen_boxes(linen.LogicallyPartitioned),
}
FORMS: dict[str, Callable[[], Any]] = {
    "equinox": lambda: eqx.filter(MLP, eqx.is_inexact_array),
    "haiku": lambda: hk.transform(lambda x: hk.nets.MLP([3, 2])(x)).init(
        jax.random.key(0), jnp.ones((1, 2))
    ),
    **BOXES,
    "named tuple": lambda: Attention(*LEAVES),
    "named tuple in a list": lambda: [Attention(*LEAVES)],
    "frozen dict": lambda: flax.core.freeze({"layer": {"a": LEAVES[:2], "b": LEAVES[2:]}}),
    "with None": lambda: (None, list(LEAVES)),
}


def step_twice(tx: Any, form: Any, whole: Any = None) -> Any:
    """Updates of two steps; ``whole`` is what ``params`` is, where that is more than ``form``."""
    params = filled(form if whole is None else whole, 0)
    tx = optax.with_extra_args_support(tx)
    with jax.numpy_dtype_promotion("standard"):  # optax's own are not strict
        state, taken = tx.init(filled(form, 0)), []
    for seed in (1, 2):
        with jax.numpy_dtype_promotion("standard"):
            updates, state = tx.update(filled(form, seed), state, params, **EXTRA)
        assert jax.tree.structure(updates) == jax.tree.structure(form)
        params = eqx.apply_updates(params, updates)
        taken.append(updates)
    return taken


def wide(name: str = "adamw", **options: Any) -> Any:
    return adamw_jax.create(name, 0.05, **options)


RECIPES: dict[str, Callable[[], Any]] = {
    "lookahead": lambda: compose(wide(), lookahead(sync_period=1)),
    "lookahead around": lambda: lookahead(wide(), 1),
    "lookahead around optax": lambda: lookahead(optax.adamw(0.05), 1, inner_state="pullback"),
    **{
        f"average_iterates {kind}": lambda kind=kind: compose(wide(), average_iterates(kind=kind))
        for kind in ("equal", "ema", "last", "weighted")
    },
    "probe": lambda: probe(wide()),
    "probe per leaf": lambda: probe(wide(), per_leaf=True),
    "stochastic_rounding": lambda: compose(wide(), stochastic_rounding()),
    "compensated_rounding": lambda: compose(wide(), compensated_rounding()),
    "rules": lambda: wide(rules=parameter_rules({"*": Rule(weight_decay=0.5)})),
    "only": lambda: compose(
        *(adamw_jax.estimate_moments(), only(amsgrad_max(), matrices_only)),
        *(adamw_jax.correct_bias(), adamw_jax.precondition()),
        adamw_jax.scale_by_learning_rate(0.1),
    ),
    "frozen": lambda: compose(wide(), frozen=matrices_only),
    "8bit": lambda: quantize_state(wide(), min_size=1),
    "8bit optax": lambda: quantize_state(optax.adamw(0.05), min_size=1),
    "packed": lambda: pack_small_leaves(wide()),
    "packed optax": lambda: pack_small_leaves(optax.adamw(0.05)),
    "l2": lambda: wide("adam", l2=0.1, mask=matrices_only),
    "mask": lambda: wide(weight_decay=0.5, mask=matrices_only),
    "clipped": lambda: compose(adamw_jax.clip_gradient(0.1), wide()),
    "percentile": lambda: compose(adamw_jax.percentile_clipping(), wide()),
}

ROWS = [
    *[pytest.param(lambda entry=p.values[0]: entry.make(), id=p.id, marks=p.marks) for p in rows(PLAIN)],
    *[pytest.param(make, id=label) for label, make in RECIPES.items()],
]
table = pytest.mark.parametrize("make", ROWS)


@table
def test_forms(make: Any) -> None:
    """Every form gives the updates of the plain dict, in its own structure."""
    expected = [by_shape(updates) for updates in step_twice(make(), dict(enumerate(LEAVES)))]
    for name, form in FORMS.items():
        got = [by_shape(unbox(updates)) for updates in step_twice(make(), form())]
        try:
            assert_close(got, expected, 1e-5, 1e-6)
        except AssertionError as error:
            raise AssertionError(name) from error


@table
def test_a_whole_equinox_model_as_params(make: Any) -> None:
    """Its functions, which have None for a gradient, change nothing."""
    form = FORMS["equinox"]()
    got, expected = step_twice(make(), form, MLP), step_twice(make(), form)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
