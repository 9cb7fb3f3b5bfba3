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
    stochastic_rounding,
)
from adamw_jax._core.numerics import leaf_names, unbox
from tests.catalogue import EXTRA, PLAIN, assert_close

pytestmark = pytest.mark.quick

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
    "rules": lambda: wide(rules=parameter_rules({"*": Rule(weight_decay_factor=0.5)})),
    "only": lambda: compose(
        *(adamw_jax.estimate_moments(), only(amsgrad_max(), matrices_only)),
        *(adamw_jax.correct_bias(), adamw_jax.precondition()),
        adamw_jax.scale_by_learning_rate(0.1),
    ),
    "frozen": lambda: compose(wide(), frozen=matrices_only),
    "8bit": lambda: quantize_state(wide(), min_size=1),
    "8bit optax": lambda: quantize_state(optax.adamw(0.05), min_size=1),
    "packed": lambda: pack_small_leaves(wide()),
    "packed optax": lambda: pack_small_leaves(optax.adamw(0.05), elementwise=True),
    "l2": lambda: wide("adam", l2=0.1, mask=matrices_only),
    "mask": lambda: wide(weight_decay=0.5, mask=matrices_only),
    "clipped": lambda: compose(adamw_jax.clip_gradient(0.1), wide()),
    "percentile": lambda: compose(adamw_jax.percentile_clipping(), wide()),
}

FAST = ("adamw", "lookahead", "frozen")
MAKERS: dict[str, Callable[[], Any]] = {**{e.label: e.make for e in PLAIN}, **RECIPES}
ROWS = [
    pytest.param(make, id=label, marks=() if label in FAST else pytest.mark.slow)
    for label, make in MAKERS.items()
]
table = pytest.mark.parametrize("make", ROWS)


@pytest.mark.sample(1)
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


MASKED: dict[str, Callable[[Any], Any]] = {
    "adamw(mask=)": lambda mask: adamw(0.1, weight_decay=0.1, mask=mask),
    "adam(l2=, mask=)": lambda mask: adam(0.1, l2=0.1, mask=mask),
    "decoupled_decay": lambda mask: compose(
        adamw_jax.scale_by_adam(), decoupled_decay(0.1, mask), adamw_jax.scale_by_learning_rate(0.1)
    ),
    "frozen": lambda mask: compose(adamw(0.1), frozen=mask),
    "only": lambda mask: compose(
        adamw_jax.scale_by_adam(),
        only(decoupled_decay(0.1), mask),
        adamw_jax.scale_by_learning_rate(0.1),
    ),
    "lamb(trust_ratio_mask=)": lambda mask: lamb(0.1, trust_ratio_mask=mask),
    "lars(weight_decay_mask=)": lambda mask: lars(0.1, 0.1, mask),
    "lars(trust_ratio_mask=)": lambda mask: lars(0.1, trust_ratio_mask=mask),
    "adafactor(mask=)": lambda mask: adafactor(0.1, weight_decay=0.1, mask=mask),
}


@pytest.mark.sample(4)
@pytest.mark.parametrize("place", MASKED)
def test_masks_that_are_trees_of_the_form(place: str) -> None:
    """A mask made of the parameters, which an Equinox module makes callable, as the function."""
    for name in ("equinox", *BOXES):
        form = FORMS[name]()
        expected = step_twice(MASKED[place](matrices_only), form)
        mask = jax.tree.map(lambda x: x.ndim > 1, form)
        masks = [mask, nnx.to_pure_dict(mask)] if name == "nnx" else [mask]
        for one in masks:
            assert_close(step_twice(MASKED[place](one), form), expected)


VALUE_LAST = {
    "in a list": lambda: [Attention(*LEAVES)],
    "in a dict": lambda: {"attention": Attention(*LEAVES)},
    "at the root": lambda: Attention(*LEAVES),
}


@pytest.mark.parametrize("where", VALUE_LAST)
def test_a_parameter_called_value(where: str) -> None:
    """It has that name in masks, rules and the probe."""
    params = VALUE_LAST[where]()
    names = [name.rpartition("/")[2] for name in leaf_names(params)]
    assert names == ["query", "key", "value", "bias"]
    for mask in (except_named("query", "key", "bias"), "*value"):
        updates, _ = _still(adamw(0.1, weight_decay=0.1, mask=mask), params)
        assert [bool(u.any()) for u in jax.tree.leaves(updates)] == [False, False, True, False]
    rules = parameter_rules({"*value": Rule(freeze=True), "*[!e]": Rule(), "*bias": Rule()})
    with pytest.raises(ValueError, match=r"bias.*\*bias"):
        adamw(0.1, rules=rules).init(params)
    tx = probe(adam(0.1), per_leaf=True)
    assert [*adamw_jax.read_probe(tx.init(params), params)["update_norm"]] == leaf_names(params)


def _still(tx: Any, params: Any) -> Any:
    return tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)


class Case(NamedTuple):
    """A function of a state: the recipe, what it gives, and of whose state."""

    tx: Callable[[], Any]
    call: Callable[[Any, Any], Any]
    of: Callable[[], Any] | None = None  # the recipe whose state it gives


def _adamw() -> Any:
    return adamw(0.1)


def _averaged() -> Any:
    return compose(adamw(0.1), average_iterates())


def _tail() -> Any:
    return compose(adamw(0.1), lookahead(sync_period=1))


def _packed() -> Any:
    return pack_small_leaves(adamw(0.1))


def _small() -> Any:
    return quantize_state(adamw(0.1), min_size=1)


CASES: dict[str, Case] = {
    "hyperparams": Case(_adamw, lambda s, p: adamw_jax.hyperparams(s)),
    "set_hyperparams": Case(_adamw, lambda s, p: adamw_jax.set_hyperparams(s, b1=0.5), _adamw),
    "clear_hyperparams": Case(
        _adamw,
        lambda s, p: adamw_jax.clear_hyperparams(adamw_jax.set_hyperparams(s, b1=0.5)),
        _adamw,
    ),
    "eval_params of an average": Case(_averaged, adamw_jax.eval_params),
    "eval_params of lookahead": Case(_tail, adamw_jax.eval_params),
    "restart_moments": Case(_adamw, lambda s, p: adamw_jax.restart_moments(s), _adamw),
    "restart_moments, 8bit": Case(_small, lambda s, p: adamw_jax.restart_moments(s), _small),
    "read_probe": Case(
        lambda: probe(adamw(0.1), per_leaf=True),
        lambda s, p: adamw_jax.read_probe(s, p)["update_norm"],
    ),
    "migrate_state": Case(_adamw, lambda s, p: adamw_jax.migrate_state(s, _tail(), p)[0], _tail),
    "migrate_state from 8bit": Case(
        _small, lambda s, p: adamw_jax.migrate_state(s, _adamw(), p)[0], _adamw
    ),
    "migrate_state to 8bit": Case(
        _adamw, lambda s, p: adamw_jax.migrate_state(s, _small(), p)[0], _small
    ),
    "from_optax": Case(
        lambda: optax.adamw(0.1), lambda s, p: adamw_jax.from_optax(s, _adamw(), p), _adamw
    ),
    "to_optax": Case(
        _adamw,
        lambda s, p: adamw_jax.to_optax(s, optax.adamw(0.1), p),
        lambda: optax.adamw(0.1),
    ),
    "repack_state": Case(_packed, lambda s, p: adamw_jax.repack_state(s, _adamw(), p), _adamw),
    "preconditioner": Case(
        _adamw, lambda s, p: adamw_jax.curvature.preconditioner(adamw(0.1), s, p)
    ),
}


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", CASES)
def test_functions_of_a_state_in_boxes(name: str) -> None:
    """They give what they give without boxes, and a state in the boxes of its transformation."""
    case = CASES[name]
    with jax.numpy_dtype_promotion("standard"):
        for form in (*BOXES, "nnx.Optimizer"):
            state, params, of = _boxed_state(case.tx(), form)
            got = case.call(state, params)
            expected = case.call(unbox(state), unbox(params))
            assert_close(jax.tree.leaves(unbox(got)), jax.tree.leaves(unbox(expected)), 1e-6, 0)
            if case.of is not None:
                assert jax.tree.structure(got) == jax.tree.structure(of(case.of()))


def _boxed_state(tx: Any, form: str) -> tuple[Any, Any, Any]:
    """State and parameters after a step, as their library keeps them; how it begins a state."""
    if form == "nnx.Optimizer":  # whose optimizer makes boxes of its own
        model = Dense()
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        optimizer.update(model, nnx.state(model, nnx.Param))
        params = nnx.state(model, nnx.Param)
        return (
            optimizer.opt_state,
            params,
            lambda tx: nnx.Optimizer(model, tx, wrt=nnx.Param).opt_state,
        )
    params = FORMS[form]()
    updates, state = tx.update(params, tx.init(params), params)
    return state, optax.apply_updates(params, updates), lambda tx: tx.init(params)


def test_summary_of_parameters_in_boxes() -> None:
    """The table is that of the arrays."""
    for make in (_adamw, _small, _packed, lambda: adafactor(0.1)):
        for form in BOXES:
            params = FORMS[form]()
            expected = adamw_jax.summary(make(), unbox(params))
            assert adamw_jax.summary(make(), params) == expected


@table
def test_python_floats(make: Any) -> None:
    """They are scalars, at the root and in a tree."""
    for params, gradient in ((1.5, 0.5), ({"a": 1.5, "b": -0.5}, {"a": 0.5, "b": 2.0})):
        updates, arrays = (
            _updates_of(make(), given, slope)
            for given, slope in (
                (params, gradient),
                jax.tree.map(jnp.float32, (params, gradient)),
            )
        )
        assert_close(updates, arrays)
        assert all(isinstance(u, jax.Array) for u in jax.tree.leaves(updates))


def _updates_of(tx: Any, params: Any, gradient: Any) -> Any:
    tx = optax.with_extra_args_support(tx)
    with jax.numpy_dtype_promotion("standard"):
        return tx.update(gradient, tx.init(params), params, **EXTRA)[0]


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a leaf less": (
        lambda p: {"a": p["a"]},
        r"structure of the parameters in params: .*\['b'\].*Give the parameters that belong",
    ),
    "other names": (
        lambda p: {"a": p["a"], "c": p["b"]},
        r"structure of the parameters in params: .*\['c'\], surplus leaves \['b'\]",
    ),
    "a list": (
        lambda p: list(p.values()),
        r"do not have the structure of the parameters in params",
    ),
    "another shape": (
        lambda p: {**p, "b": jnp.ones(4)},
        r"gradient of 'b' has shape \(3,\), the parameter in params \(4,\)",
    ),
    "a shape that broadcasts": (
        lambda p: {**p, "b": jnp.ones(1)},
        r"gradient of 'b' has shape \(3,\), the parameter in params \(1,\)",
    ),
    "a scalar": (
        lambda p: {**p, "b": 1.0},
        r"gradient of 'b' has shape \(3,\), the parameter in params \(\)",
    ),
}


@table
def test_wrong_params(make: Any) -> None:
    """Parameters that are not those of the gradients are refused by name."""
    params = {"a": LEAVES[0], "b": LEAVES[1]}
    tx = make()
    with jax.numpy_dtype_promotion("standard"):
        state = tx.init(params)
    for change, message in WRONG.values():
        with pytest.raises(ValueError, match=message):
            optax.with_extra_args_support(tx).update(params, state, change(params), **EXTRA)
