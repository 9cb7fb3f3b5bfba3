"""A copy of a recipe, a stage or a wrapped recipe is one, too, and does the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import cloudpickle
import jax
import optax
import pytest

import adamw_jax
from adamw_jax import adam, adamw, compose, lookahead, pack_small_leaves, probe
from adamw_jax._core.stage import Declared
from tests.catalogue import PLAIN, assert_equal, at, one_step, sample_gradients, sample_params

pytestmark = pytest.mark.quick

DECLARED: dict[str, Callable[[], Any]] = {
    "recipe": lambda: compose(adam(0.1), lookahead()),
    "stage": lambda: adamw_jax.amsgrad_max(),
    "stage that is a whole step": lambda: adamw_jax.decoupled_decay(0.1),
    "probe": lambda: probe(adamw(0.1)),
    "packed": lambda: pack_small_leaves(adamw(0.1)),
    **{entry.label: entry.make for entry in PLAIN},
}
COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "tree.map": lambda tx: jax.tree.map(lambda x: x, tx),
    "_replace": lambda tx: tx._replace(init=tx.init),
    "cloudpickle": lambda tx: cloudpickle.loads(cloudpickle.dumps(tx)),
}


@pytest.mark.parametrize("way", COPIES)
def test_copies(way: str) -> None:
    """They keep their type and what they declare."""
    for make in DECLARED.values():
        tx = make()
        copied = COPIES[way](tx)
        assert type(copied) is type(tx)
        if way != "cloudpickle":
            assert copied == tx
        if isinstance(tx, adamw_jax.Composed):
            assert [spec.name for spec in copied.specs] == [spec.name for spec in tx.specs]
            assert [*compose(copied).specs][-1].name == tx.specs[-1].name


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_makes_the_same_steps(way: str) -> None:
    """Of a recipe with a tail."""
    params, gradient = sample_params(), at(sample_gradients(), 0)
    tx = DECLARED["recipe"]()
    copied = COPIES[way](tx)
    got, expected = (one_step(t)(params, t.init(params), gradient) for t in (copied, tx))
    assert_equal(got, expected)
    assert adamw_jax.summary(copied, params) == adamw_jax.summary(tx, params)


@pytest.mark.parametrize("field", ["init", "update"])
def test_another_function_makes_an_ordinary_transformation(field: str) -> None:
    """Which declares nothing, for it would not be true."""
    for make in DECLARED.values():
        tx = make()
        changed = tx._replace(**{field: getattr(optax.sgd(0.1), field)})
        assert type(changed) is optax.GradientTransformationExtraArgs
        assert not isinstance(changed, Declared)
    with pytest.raises(TypeError, match="recipe"):
        adamw_jax.from_optax(optax.adam(0.1).init(sample_params()), changed, sample_params())
