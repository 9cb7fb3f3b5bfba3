"""Learning rates by layer: layer-wise decay and discriminative rates."""

from __future__ import annotations

import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamw_jax
from adamw_jax import (
    Rule,
    adafactor,
    adamw,
    one_cycle,
    parameter_rules,
    sgdw,
    summary,
)
from adamw_jax.direction import discriminative_rates, layer_decay
from adamw_jax.direction._decay import FORMS

LAYER = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
VIT = {
    "patch_embed": LAYER,
    "pos_embed": jnp.ones(3),
    **{f"block_{i}": LAYER for i in range(12)},
    "norm": {"scale": jnp.ones(2)},
    "head": LAYER,
}
STEM = ("patch_embed/*", "pos_embed")


def rates(rules: Any, params: Any) -> dict[str, float]:
    """The learning rate of each top-level entry, from a step of SGD at rate 1."""
    tx = sgdw(1.0, momentum=None, rules=rules)
    gradient = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(gradient, tx.init(params), params)
    found = {}
    for name, part in updates.items():
        moved = {round(-float(x), 7) for leaf in jax.tree.leaves(part) for x in leaf.ravel()}
        (found[name],) = moved
    return found


def test_layer_decay_of_a_vision_transformer() -> None:
    """The figures of BEiT and MAE: 12 blocks, 0.75 ** (13 - id), stem 0, block i + 1, rest 13."""
    got = rates(layer_decay(0.75, [STEM, "block_{}/*"], VIT), VIT)
    expected = {"patch_embed": 0.75**13, "pos_embed": 0.75**13, "norm": 1.0, "head": 1.0}
    expected |= {f"block_{i}": 0.75 ** (13 - (i + 1)) for i in range(12)}
    assert got == pytest.approx(expected, rel=1e-5)
    listed = layer_decay(0.75, [STEM, *(f"block_{i}/*" for i in range(12))])
    assert listed == layer_decay(0.75, [STEM, "block_{}/*"], jax.eval_shape(lambda: VIT))


def test_layer_decay_combines_with_a_table_of_kinds() -> None:
    kinds = parameter_rules({"*bias": Rule(weight_decay=0.0)}, default=Rule())
    rules = layer_decay(0.5, "block_{}/*", VIT) * kinds
    tx = adamw(1.0, weight_decay=0.1, rules=rules)
    zero = jax.tree.map(jnp.zeros_like, VIT)
    updates, _ = tx.update(zero, tx.init(VIT), VIT)
    np.testing.assert_allclose(updates["block_11"]["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_allclose(updates["block_10"]["kernel"], -0.025, rtol=1e-6)
    assert not np.any(updates["block_11"]["bias"])


def stack(layers: list[Any]) -> Any:
    return jax.tree.map(lambda *x: jnp.stack(x), *layers)


READERS: dict[str, Any] = {
    **{form: lambda r, f=form: adamw(0.1, weight_decay=0.3, decay=f, rules=r) for form in FORMS},
    "sgd": lambda r: sgdw(0.1, l2=0.3, rules=r),
    "adafactor": lambda r: adafactor(0.1, weight_decay=0.3, decay="proximal", rules=r, **PLAIN),
}
PLAIN = {"multiply_by_parameter_scale": False, "clipping_threshold": None}


@pytest.mark.parametrize("reader", READERS)
def test_stacked_layers_learn_as_single_ones(reader: str) -> None:
    """By a tuple, slice by slice, whatever stage applies it."""
    keys = jax.random.split(jax.random.key(0), 3)
    single = {
        str(i): {"kernel": jax.random.normal(key, (3, 2)), "bias": jnp.ones(2)}
        for i, key in enumerate(keys)
    }
    stacked = {"layers": stack([*single.values()]), "head": jnp.ones(2)}
    single = {"layers": single, "head": jnp.ones(2)}
    names = {"stacked": (["layers/*"], stacked), "single": (["layers/{}/*"], single)}
    found = {}
    for kind, (patterns, params) in names.items():
        where = "layers/*" if kind == "stacked" else None
        tx = READERS[reader](layer_decay(0.5, patterns, params, stacked=where))
        state = tx.init(params)
        for _ in range(3):
            gradient = jax.tree.map(jnp.sin, params)
            updates, state = tx.update(gradient, state, params)
            params = jax.tree.map(jnp.add, params, updates)
        found[kind] = params
    together = stack([*found["single"]["layers"].values()])
    chex.assert_trees_all_close(found["stacked"]["layers"], together, rtol=1e-5)
    np.testing.assert_allclose(found["stacked"]["head"], found["single"]["head"], rtol=1e-5)


def test_multipliers_of_stacked_layers() -> None:
    layers = {"w": jnp.ones((3, 2)), "b": jnp.ones(3)}
    params = {"embed": jnp.ones(2), "layers": layers, "head": jnp.ones(2)}
    rules = layer_decay(0.5, ["embed", "layers/*"], params, stacked="layers/*")
    expected = {
        "embed": Rule(learning_rate_factor=0.5**4),
        "layers/*": Rule(learning_rate_factor=(0.125, 0.25, 0.5)),
    }
    assert rules == parameter_rules(expected, default=Rule())
    assert "x (0.125, 0.25, 0.5)" in summary(adamw(1e-3, rules=rules), params)
    tx = adamw(
        1e-3,
        rules=parameter_rules({"embed": Rule(learning_rate_factor=(1.0, 2.0))}, default=Rule()),
    )
    with pytest.raises(ValueError, match=r"embed has a tuple of 2 .* shape \(3,\)"):
        tx.init({**params, "embed": jnp.ones(3)})
    with pytest.raises(ValueError, match="use a pattern for each number of layers"):
        layer_decay(0.5, ["*"], params, stacked="layers/*")
    with pytest.raises(ValueError, match="stacked needs params"):
        layer_decay(0.5, ["layers/*"], stacked="layers/*")
    with pytest.raises(ValueError, match="weight_decay_factor must be a number >= 0"):
        Rule(weight_decay_factor=(1.0,))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"learning_rate_factor is a tuple.* leave out name='a'"):
        Rule(learning_rate_factor=(1.0,), name="a")


def test_discriminative_rates_are_fastais() -> None:
    """fastai's even_mults(low, high, n) and slice(high): high / 10 for all groups but the last."""
    params = {name: LAYER for name in ("a", "b", "c", "d")}
    groups = [f"{name}/*" for name in params]
    got = rates(discriminative_rates(1e-5, 1e-2, groups), params)
    assert [1e-2 * x for x in got.values()] == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2], rel=1e-4)
    got = rates(discriminative_rates(None, 1e-2, groups), params)
    assert [*got.values()] == pytest.approx([0.1, 0.1, 0.1, 1.0])
    got = rates(discriminative_rates(1e-3, 1e-2, [("a/*", "b/*"), ("c/*", "d/*")]), params)
    assert [*got.values()] == pytest.approx([0.1, 0.1, 1.0, 1.0])
    assert rates(discriminative_rates(1e-3, 1e-2, "*"), params)["a"] == 1.0
    with pytest.raises(ValueError, match="Not matched"):
        rates(discriminative_rates(1e-3, 1e-2, groups[1:]), params)


@pytest.mark.parametrize("rates", [slice(1e-4, 1e-2), slice(1e-2)])
def test_the_slice_of_fastai_names_the_code_to_write(rates: Any) -> None:
    """The two calls in the message, run as they stand, make the groups of the slice."""
    with pytest.raises(TypeError, match=r"give 0.01 and rules=adamw_jax.direction.discriminative"):
        adamw(rates)
    with pytest.raises(ValueError, match="discriminative_rates") as error:
        one_cycle(rates, total_steps=10)
    rules = re.search(r"rules = (.*\]\)) with", str(error.value))
    optimizer = re.search(r"and (adamw\(.*\))\.", str(error.value))
    assert rules
    assert optimizer
    names: dict[str, Any] = {"adamw_jax": adamw_jax, "adamw": adamw, "one_cycle": one_cycle}
    names["rules"] = eval(rules[1], names)
    tx = eval(optimizer[1], names)
    params = {"body": {"w": jnp.ones(2)}, "head": {"w": jnp.ones(2)}}
    updates, _ = tx.update(params, tx.init(params), params)
    low = 1e-3 if rates.start is None else rates.start
    np.testing.assert_allclose(updates["body"]["w"] / updates["head"]["w"], low / 1e-2, rtol=1e-3)


def test_discriminative_rates_under_one_cycle() -> None:
    """Every group runs through the cycle at its own height."""
    params = {"body": LAYER, "head": LAYER}
    cycle = one_cycle(1e-2, 20, momentum=None)
    rules = discriminative_rates(1e-4, 1e-2, ["body/*", "head/*"])
    tx = sgdw(cycle, momentum=None, rules=rules)
    state, ones = tx.init(params), jax.tree.map(jnp.ones_like, params)
    for t in range(20):
        updates, state = tx.update(ones, state, params)
        rate = float(cycle.learning_rate(t))
        np.testing.assert_allclose(updates["head"]["bias"], -rate, rtol=1e-5)
        np.testing.assert_allclose(updates["body"]["bias"], -0.01 * rate, rtol=1e-5)


WRONG = {
    "stacked": (lambda: layer_decay(0.5, "layers/{}/*", {"layers": LAYER}), "stacked in one leaf"),
    "half a name": (lambda: layer_decay(0.5, "block_{}", VIT), r"such as 'blocks/\{\}/\*'"),
    "no params": (lambda: layer_decay(0.5, "block_{}/*"), "needs params to find the numbers"),
    "nothing": (lambda: layer_decay(0.5, []), "layers must hold at least one pattern"),
    "a rate above 1": (lambda: layer_decay(1.5, "a"), "rate must be a number > 0 and <= 1"),
    "a rate of 0": (lambda: layer_decay(0.0, "a"), "rate must be a number > 0 and <= 1"),
    "low above high": (lambda: discriminative_rates(1.0, 0.1, "a"), "low must be a number > 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes(case: str) -> None:
    make, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        make()
    with pytest.raises(TypeError, match="layers must hold patterns"):
        layer_decay(0.5, [3])  # type: ignore[list-item]


def test_overlapping_numbers_are_refused() -> None:
    """block_1* also matches block_11: the check of the rules says so."""
    tx = adamw(1e-3, rules=layer_decay(0.5, "block_{}*", VIT))
    with pytest.raises(ValueError, match=r"'block_1\*', 'block_11\*'"):
        tx.init(VIT)
