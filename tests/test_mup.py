"""muP: the multipliers of the table, and the coordinate check that they are right."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adamw_jax import Rule, adam, adamw, parameter_rules, sgdw, summary
from adamw_jax.direction import mup
from adamw_jax.direction._rules import values_of
from adamw_jax.extend import Step

INPUTS, OUTPUTS, BATCH, BASE = 16, 4, 32, 64
WIDTHS = (64, 128, 256, 512)


def initial(width: int, key: jax.Array, output_std: float) -> Any:
    """A network of three layers; the output weights have the given standard deviation."""
    keys = jax.random.split(key, 3)
    normal = jax.random.normal
    return {
        "input": {
            "kernel": normal(keys[0], (INPUTS, width)) / INPUTS**0.5,
            "bias": jnp.zeros(width),
        },
        "hidden": {
            "kernel": normal(keys[1], (width, width)) / width**0.5,
            "bias": jnp.zeros(width),
        },
        "output": {"kernel": output_std * normal(keys[2], (width, OUTPUTS))},
    }


def activations(params: Any, x: jax.Array, multiplier: float) -> dict[str, jax.Array]:
    one, two = params["input"], params["hidden"]
    first = jnp.tanh(x @ one["kernel"] + one["bias"][None])
    second = jnp.tanh(first @ two["kernel"] + two["bias"][None])
    logits = multiplier * (second @ params["output"]["kernel"])
    return {"input": first, "hidden": second, "output": logits}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def changes(width: int, method: str, use_mup: bool, seed: jax.Array) -> dict[str, jax.Array]:
    """The mean absolute change of activations in three steps on one batch."""
    keys = jax.random.split(seed, 3)
    x, labels = jax.random.normal(keys[0], (BATCH, INPUTS)), jnp.arange(BATCH) % OUTPUTS
    std, multiplier = (BASE**-0.5, BASE / width) if use_mup else (width**-0.5, 1.0)
    params = initial(width, keys[1], std)
    rules = None
    if use_mup:
        base = jax.eval_shape(lambda: initial(BASE, keys[1], 1.0))
        rules = mup(params, base, method)
    tx = adam(1e-3, rules=rules) if method == "adam" else sgdw(0.1, momentum=0.9, rules=rules)

    def loss(params: Any) -> jax.Array:
        logits = activations(params, x, multiplier)["output"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(_: Any, carry: Any) -> Any:
        moved, state = carry
        updates, state = tx.update(jax.grad(loss)(moved), state, moved)
        return optax.apply_updates(moved, updates), state

    moved, _ = jax.lax.fori_loop(0, 3, step, (params, tx.init(params)))
    first, last = (activations(weights, x, multiplier) for weights in (params, moved))
    return jax.tree.map(lambda a, b: jnp.abs(a - b).mean(), last, first)


def slopes(method: str, use_mup: bool) -> dict[str, float]:
    """The power of the width with which each layer's change grows."""
    seeds = jax.random.split(jax.random.key(0), 4)
    found = [
        jax.tree.map(
            lambda *x: float(np.mean(x)), *(changes(w, method, use_mup, seed) for seed in seeds)
        )
        for w in WIDTHS
    ]
    logs = {name: np.log([change[name] for change in found]) for name in found[0]}
    return {name: float(np.polyfit(np.log(WIDTHS), y, 1)[0]) for name, y in logs.items()}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["adam", "sgd"])
def test_coordinate_check(method: str) -> None:
    """Every layer's change is flat in the width with muP; without, it grows or dies out."""
    flat, standard = slopes(method, use_mup=True), slopes(method, use_mup=False)
    print(method, flat, standard)
    assert max(abs(slope) for slope in flat.values()) < 0.15
    assert standard["output"] > 0.4


def shapes(width: int, layers: int = 2) -> Any:
    """Names and shapes of a Flax transformer."""
    tree = {
        "embed": {"embedding": (100, width)},
        "query": {"kernel": (width, width // 8, 8), "bias": (width // 8, 8)},
        "out": {"kernel": (width // 8, 8, width)},
        "mlp": {"kernel": (width, 4 * width), "bias": (4 * width,)},
        "norm": {"scale": (width,)},
        "stack": {"kernel": (layers, width, width), "bias": (layers, width)},
        "temperature": (),
        "head": {"kernel": (width, 100)},
    }
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), tree, is_leaf=is_shape)


def multipliers(rules: Any, params: Any, field: str = "learning_rate") -> dict[str, float]:
    step = Step(jnp.int32(0), {field: jnp.float32(1)}, None, {})
    factors = values_of(rules, field, step, params)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): float(factor)
        for path, factor in jax.tree_util.tree_leaves_with_path(factors)
    }


HIDDEN = {"query/kernel", "out/kernel", "mlp/kernel", "stack/kernel"}


def test_the_table_for_a_transformer() -> None:
    """Hidden weights 1/r for Adam; for SGD r in all that grow along one axis."""
    params, base = shapes(256), shapes(64)
    for name, factor in multipliers(mup(params, base, stacked="stack/*"), params).items():
        assert factor == (0.25 if name in HIDDEN else 1.0), name
    for name, factor in multipliers(mup(params, base, "sgd", stacked="stack/*"), params).items():
        assert factor == (1.0 if name in {*HIDDEN, "temperature"} else 4.0), name
    assert set(multipliers(mup(base, base, "sgd"), base).values()) == {1.0}
    deeper = shapes(256, layers=6)
    assert mup(deeper, base, stacked="stack/*") == mup(params, base, stacked="stack/*")


def test_fan_in_by_the_layout() -> None:
    """A layer whose two widths grow differently, in Flax's and in Equinox's order."""
    base, wide = {"w": jnp.ones((8, 8))}, {"w": jnp.ones((16, 64))}
    for layout, adam_rate, sgd_rate in (("in_out", 1 / 2, 4.0), ("out_in", 1 / 8, 1 / 4)):
        assert multipliers(mup(wide, base, layout=layout), wide) == {"w": adam_rate}
        assert multipliers(mup(wide, base, "sgd", layout=layout), wide) == {"w": sgd_rate}


@pytest.mark.parametrize("decay", ["learning_rate", "proximal", "fixed"])
def test_the_decay_per_step_does_not_depend_on_the_width(decay: str) -> None:
    params, base = {"w": jnp.ones((256, 256))}, {"w": jnp.ones((64, 64))}
    rules = mup(params, base, decay_follows_rate=decay != "fixed")
    zero = jax.tree.map(jnp.zeros_like, params)
    for one in (rules, None):
        tx = adamw(0.1, weight_decay=0.1, decay=decay, rules=one)
        updates, _ = tx.update(zero, tx.init(params), params)
        expected = {"learning_rate": 0.01, "proximal": 0.01 / 1.01, "fixed": 0.1}[decay]
        np.testing.assert_allclose(updates["w"], -expected, rtol=1e-5)


def test_mup_combines_with_a_table() -> None:
    params, base = shapes(256), shapes(64)
    kinds = parameter_rules({"*/bias": Rule(weight_decay=0.0)}, default=Rule())
    rules = mup(params, base, stacked="stack/*") * kinds
    assert multipliers(rules, params, "weight_decay")["mlp/bias"] == 0.0
    text = summary(adamw(1e-3, rules=rules), params)
    assert "mlp/kernel and 3 more" in text
    names = {"a[0]": jnp.ones((16, 16)), "a0": jnp.ones((8, 8))}
    base = {"a[0]": jnp.ones((8, 8)), "a0": jnp.ones((8, 8))}
    assert multipliers(mup(names, base), names) == {"a[0]": 0.5, "a0": 1.0}


def test_trees_that_do_not_fit_are_refused() -> None:
    params, base = shapes(256), shapes(64)
    with pytest.raises(ValueError, match=r"stack/kernel has shape .*name leaves whose first axis"):
        mup(shapes(256, layers=6), base)
    with pytest.raises(ValueError, match=r"\['head/kernel'\] are in only one"):
        mup(params, {k: v for k, v in base.items() if k != "head"})
    with pytest.raises(ValueError, match="other axes"):
        mup({"w": jnp.ones(3)}, {"w": jnp.ones((3, 1))})
    with pytest.raises(ValueError, match="optimizer must be one of"):
        mup(params, base, "lamb")
    with pytest.raises(ValueError, match="layout must be one of"):
        mup(params, base, layout="io")
