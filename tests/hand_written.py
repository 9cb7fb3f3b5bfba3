"""Every optimizer's step as one would write it down for a single array, with its defaults.

For counting only: what XLA makes of these formulas is the least that a step of the library may be
held to. Numbers are constants here and clocks are left out; neither is an array.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from adamw_jax._core import gradients

LR, EPS, WD = (jnp.float32(x) for x in (1e-3, 1e-8, 1e-4))
B0, B1, B2, B3 = (jnp.float32(x) for x in (2.0, 0.9, 0.999, 0.99))
ONE, HALF = jnp.float32(1), jnp.float32(0.5)

Arrays = tuple[jax.Array, ...]
Formula = Callable[[jax.Array, jax.Array, Arrays], tuple[jax.Array, Arrays]]


def mean(old: jax.Array, new: jax.Array, rate: jax.Array) -> jax.Array:
    """One step of a moving average."""
    return rate * old + (ONE - rate) * new


def adam(p: jax.Array, g: jax.Array, s: Arrays) -> tuple[jax.Array, Arrays]:
    """Also RAdam, but for its scalars."""
    m, v = mean(s[0], g, B1), mean(s[1], g * g, B2)
    return p - LR * m / (jnp.sqrt(v) + EPS), (m, v)


def adamw(p: jax.Array, g: jax.Array, s: Arrays) -> tuple[jax.Array, Arrays]:
    m, v = mean(s[0], g, B1), mean(s[1], g * g, B2)
    return p - LR * (m / (jnp.sqrt(v) + EPS) + WD * p), (m, v)


def adamax(p: jax.Array, g: jax.Array, s: Arrays) -> tuple[jax.Array, Arrays]:
    m, u = mean(s[0], g, B1), jnp.maximum(B2 * s[1], jnp.abs(g) + EPS)
    return p - LR * m / u, (m, u)


def amsgrad(p: jax.Array, g: jax.Array, s: Arrays) -> tuple[jax.Array, Arrays]:
    m, v = mean(s[0], g, B1), mean(s[1], g * g, B2)
    top = jnp.maximum(s[2], v)
    return p - LR * m / (jnp.sqrt(top) + EPS), (m, v, top)


def adabelief(p: jax.Array, g: jax.Array, s: Arrays) -> tuple[jax.Array, Arrays]:
    m = mean(s[0], g, B1)
    v = mean(s[1], (g - m) ** 2, B2)
    return p - LR * m / (jnp.sqrt(v) + EPS), (m, v)


def sgdw(p: jax.Array, g: jax.Array, s: Arrays) -> tuple[jax.Array, Arrays]:
    m = B1 * s[0] + LR * g
    return p - m - LR * WD * p, (m,)


def adan(p: jax.Array, g: jax.Array, s: Arrays) -> tuple[jax.Array, Arrays]:
    m, v, n, old = s
    d = g - old
    m, v, n = mean(m, g, B1), mean(v, d, B3), mean(n, (g + B3 * d) ** 2, B2)
    return (p - LR * (m + B3 * v) / (jnp.sqrt(n) + EPS)) / (ONE + LR * WD), (m, v, n, g)


def pnm(p: jax.Array, g: jax.Array, s: Arrays) -> tuple[jax.Array, Arrays]:
    """The two averages change places instead of a parity."""
    new = B1 * B1 * s[1] + (ONE - B1 * B1) * g
    return p - LR * (B0 * new - (B0 - ONE) * s[0]) - LR * WD * p, (new, s[0])


def adapnm(p: jax.Array, g: jax.Array, s: Arrays) -> tuple[jax.Array, Arrays]:
    new = B1 * B1 * s[1] + (ONE - B1 * B1) * g
    v = mean(s[2], g * g, B2)
    top = jnp.maximum(s[3], v)
    step = (B0 * new - (B0 - ONE) * s[0]) / (jnp.sqrt(top) + EPS)
    return p - LR * step - LR * WD * p, (new, s[0], v, top)


def acprop(p: jax.Array, g: jax.Array, s: Arrays) -> tuple[jax.Array, Arrays]:
    m = mean(s[0], g, B1)
    return p - LR * g / (jnp.sqrt(s[1]) + EPS), (m, mean(s[1], (g - m) ** 2, B2))


def laprop(p: jax.Array, g: jax.Array, s: Arrays) -> tuple[jax.Array, Arrays]:
    v = mean(s[1], g * g, B2)
    m = mean(s[0], g / (jnp.sqrt(v) + EPS), B1)
    return p - LR * m, (m, v)


def mars(p: jax.Array, g: jax.Array, s: Arrays) -> tuple[jax.Array, Arrays]:
    c = g + B3 * (g - s[2])
    c = c / jnp.maximum(jnp.sqrt(jnp.sum(c * c)), ONE)
    m, v = mean(s[0], c, B1), mean(s[1], c * c, B2)
    return p - LR * m / (jnp.sqrt(v) + EPS), (m, v, g)


def nadam(p: jax.Array, g: jax.Array, s: Arrays) -> tuple[jax.Array, Arrays]:
    m, v = mean(s[0], g, B1), mean(s[1], g * g, B2)
    return p - LR * mean(m, g, B1) / (jnp.sqrt(v) + EPS), (m, v)


def ademamix(p: jax.Array, g: jax.Array, s: Arrays) -> tuple[jax.Array, Arrays]:
    m, slow, v = mean(s[0], g, B1), mean(s[1], g, B3), mean(s[2], g * g, B2)
    return p - LR * (m + B0 * slow) / (jnp.sqrt(v) + EPS), (m, slow, v)


def adopt(p: jax.Array, g: jax.Array, s: Arrays) -> tuple[jax.Array, Arrays]:
    u = jnp.clip(g / jnp.maximum(jnp.sqrt(s[1]), EPS), -B0, B0)
    m = mean(s[0], u, B1)
    return p - LR * m, (m, mean(s[1], g * g, B2))


def diffgrad(p: jax.Array, g: jax.Array, s: Arrays) -> tuple[jax.Array, Arrays]:
    m, v = mean(s[0], g, B1), mean(s[1], g * g, B2)
    friction = jax.nn.sigmoid(jnp.abs(s[2] - g))
    return p - LR * friction * m / (jnp.sqrt(v) + EPS), (m, v, g)


def generalized_signsgd(p: jax.Array, g: jax.Array, s: Arrays) -> tuple[jax.Array, Arrays]:
    m, v = mean(s[0], g, B1), mean(s[1], mean(s[0], g, B1) ** 2, B2)
    return p - LR * m / jnp.sqrt(v), (m, v)


def clipped_sgd(p: jax.Array, g: jax.Array, s: Arrays) -> tuple[jax.Array, Arrays]:
    return p - jnp.minimum(LR, HALF / jnp.sqrt(jnp.sum(g * g))) * g, s


def normalized_sgd(p: jax.Array, g: jax.Array, s: Arrays) -> tuple[jax.Array, Arrays]:
    return p - LR / jnp.sqrt(jnp.sum(g * g)) * g, s


def padam(p: jax.Array, g: jax.Array, s: Arrays) -> tuple[jax.Array, Arrays]:
    m, v = mean(s[0], g, B1), mean(s[1], g * g, B2)
    top = jnp.maximum(s[2], v)
    return p - LR * m / jnp.exp(HALF * jnp.log(jnp.sqrt(top) + EPS)), (m, v, top)


def averaged(formula: Formula) -> Formula:
    """The mean of the iterates beside it, of every step."""

    def step(p: jax.Array, g: jax.Array, s: Arrays) -> tuple[jax.Array, Arrays]:
        p, rest = formula(p, g, s[:-1])
        return p, (*rest, mean(s[-1], p, B3))

    return step


def norm_adaptive_sgd(p: jax.Array, g: jax.Array, s: Arrays) -> tuple[jax.Array, Arrays]:
    return p - LR / (jnp.sqrt(jnp.sum(g * g)) + EPS) * g, s


def koala_v(p: jax.Array, g: jax.Array, s: Arrays) -> tuple[jax.Array, Arrays]:
    return p - LR / (jnp.sum(g * g) + EPS) * g, s


def koala_m(p: jax.Array, g: jax.Array, s: Arrays) -> tuple[jax.Array, Arrays]:
    velocity, average = s
    drift = jnp.sqrt(jnp.sum((average - (p - velocity)) ** 2))
    back = LR * drift / (jnp.sum(g * g) + EPS) * g
    velocity = B1 * velocity - B2 * back
    return p + velocity - back, (velocity, mean(average, p - back, B1))


def trusted(p: jax.Array, u: jax.Array) -> jax.Array:
    """A step as long as the leaf is, or as it was where either has no length."""
    ours, theirs = jnp.sqrt(jnp.sum(p * p)), jnp.sqrt(jnp.sum(u * u))
    return jnp.where((ours == 0) | (theirs == 0), ONE, ours / theirs) * u


def lars(p: jax.Array, g: jax.Array, s: Arrays) -> tuple[jax.Array, Arrays]:
    m = B1 * s[0] + LR * trusted(p, g)
    return p - m, (m,)


def lamb(p: jax.Array, g: jax.Array, s: Arrays) -> tuple[jax.Array, Arrays]:
    m, v = mean(s[0], g, B1), mean(s[1], g * g, B2)
    return p - LR * trusted(p, m / (jnp.sqrt(v) + EPS)), (m, v)


def schedule_free_adamw(p: jax.Array, g: jax.Array, s: Arrays) -> tuple[jax.Array, Arrays]:
    """Also schedule-free RAdam, but for its scalars; B3 is the weight of the average."""
    v = mean(s[0], g * g, B2)
    u = LR * g / (jnp.sqrt(v) + EPS)
    z = s[1] - u
    return p - (ONE - B1) * (ONE - B3) * u + B3 * (z - p), (v, z)


FORMULAS: dict[str, tuple[int, Formula]] = {
    "adam": (2, adam),
    "mars": (3, mars),
    "nadam": (2, nadam),
    "radam": (2, adam),
    "adamw": (2, adamw),
    "adamax": (2, adamax),
    "amsgrad": (3, amsgrad),
    "adabelief": (2, adabelief),
    "sgdw": (1, sgdw),
    "adan": (4, adan),
    "pnm": (2, pnm),
    "adapnm": (4, adapnm),
    "acprop": (2, acprop),
    "ademamix": (3, ademamix),
    "adopt": (2, adopt),
    "diffgrad": (3, diffgrad),
    "generalized_signsgd": (2, generalized_signsgd),
    "clipped_sgd": (0, clipped_sgd),
    "normalized_sgd": (0, normalized_sgd),
    "norm_adaptive_sgd": (0, norm_adaptive_sgd),
    "koala_v": (0, koala_v),
    "koala_m": (2, koala_m),
    "laprop": (2, laprop),
    "lars": (1, lars),
    "lamb": (2, lamb),
    "padam": (3, padam),
    "gadam": (3, averaged(adamw)),
    "gadamx": (4, averaged(padam)),
    "schedule_free_adamw": (2, schedule_free_adamw),
    "schedule_free_radam": (2, schedule_free_adamw),
}
"""Formulas by name, with the arrays of their state."""


def state_of(name: str, params: Any) -> Any:
    """The arrays of a formula's state, each shaped like its parameter."""
    return jax.tree.map(lambda p: (p,) * FORMULAS[name][0], params)


def step_of(name: str) -> Callable[[Any, Any, Any], Any]:
    """The step ``(params, state, gradient) -> (params, state)`` of a formula, leaf by leaf."""

    def step(params: Any, state: Any, gradient: Any) -> Any:
        leaves, treedef = jax.tree.flatten(params)
        others = (treedef.flatten_up_to(tree) for tree in (gradient, state))
        done = [FORMULAS[name][1](*row) for row in zip(leaves, *others, strict=True)]
        return tuple(treedef.unflatten([row[i] for row in done]) for i in range(2))

    return step


def usual_norms() -> Any:
    """A context without the branch that reads again what overflows: XLA counts it in every step."""
    norms = gradients.norms_of_groups
    return mock.patch.object(
        gradients, "norms_of_groups", lambda groups, **_: norms(groups, plain=True)
    )
