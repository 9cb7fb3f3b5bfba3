"""RAdam's theory against sums and simulation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

from adamw_jax.diagnostics import radam_rectifier, radam_rho, radam_variance

pytestmark = pytest.mark.quick

FUNCTIONS = [jax.jit(f) for f in (radam_rho, radam_variance, radam_rectifier)]


def rho_by_sums(t: int, b2: float) -> float:
    """1 + 2 (mean age)."""
    weights = np.float64(b2) ** np.arange(t)
    return 1 + 2 * np.sum(np.arange(t) * weights) / np.sum(weights)


@given(st.integers(1, 300), st.floats(0.05, 0.99999))
def test_the_length_is_the_mean_age(t: int, b2: float) -> None:
    with jax.enable_x64(True):
        np.testing.assert_allclose(FUNCTIONS[0](t, b2), rho_by_sums(t, b2), rtol=1e-12)


def test_float32_agrees_with_float64() -> None:
    """To what is stated, also where the textbook's difference has lost every digit."""
    t, b2 = (
        np.array([1, 2, 5, 6, 20, 400, 20000]),
        np.array([[0.9], [0.999], [0.99999]], np.float32),
    )
    narrow = [f(t, b2) for f in FUNCTIONS]
    assert all(x.dtype == jnp.float32 for x in narrow)
    with jax.enable_x64(True):
        wide = [f(t, b2) for f in FUNCTIONS]
    for x, y in zip(narrow, wide, strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-4)


def test_the_limit() -> None:
    np.testing.assert_allclose(FUNCTIONS[0](jnp.inf, 0.999), 1999.0, rtol=1e-4)
    np.testing.assert_allclose(FUNCTIONS[0](1e6, 0.99), FUNCTIONS[0](jnp.inf, 0.99), rtol=1e-6)
    np.testing.assert_allclose(FUNCTIONS[2](1e6, 0.99), 1.0, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_the_two_branches_of_the_variance_meet() -> None:
    """A jump at rho = 20 would show against the slope on either side."""
    b2 = np.linspace(0.85, 0.95, 401)
    rho, variance = (np.asarray(f(10**6, b2)) for f in FUNCTIONS[:2])
    assert rho[0] < 20 < rho[-1]
    third = np.diff(np.log(variance), 3)
    assert np.abs(third).max() < 1e-4 * np.abs(np.diff(np.log(variance))).max()


def test_the_variance_by_simulation() -> None:
    """The average of t squares, weighted as Adam does, of normal gradients; 200 000 draws."""
    rng = np.random.default_rng(0)
    for t in (8, 20):
        weights = 0.999 ** np.arange(t)
        mean = rng.normal(size=(200_000, t)) ** 2 @ (weights / weights.sum())
        np.testing.assert_allclose(np.var(mean**-0.5), radam_variance(t, 0.999), rtol=0.03)


def test_what_the_first_order_overstates() -> None:
    """3.4 times at rho = 5, then less and less."""
    t = np.array([5, 10, 50, 200])
    ratio = radam_variance(t, 0.99999, exact=False) / radam_variance(t, 0.99999)
    assert np.all(np.diff(ratio) < 0)
    np.testing.assert_allclose(ratio[0], 3.4, rtol=0.05)
    np.testing.assert_allclose(ratio[-1], 1.0, rtol=0.02)


def test_under_jit_and_vmap() -> None:
    t = jnp.arange(1, 9)
    mapped = jax.jit(jax.vmap(radam_rectifier, (0, None)))(t, jnp.float32(0.99))
    np.testing.assert_array_equal(np.isnan(mapped), np.arange(1, 9) < 5)
    np.testing.assert_allclose(mapped, radam_rectifier(t, 0.99), rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0.9), "t must be >= 1 everywhere, got 0"),
        (([1, 2], [0.9, 1.0]), "b2 must be > 0 and < 1 everywhere, got 1"),
        (([1, 2], [0.9, 0.9, 0.9]), "must have shapes that broadcast"),
    ],
)
def test_errors(arguments: Any, message: str) -> None:
    for function in (radam_rho, radam_variance, radam_rectifier):
        with pytest.raises(ValueError, match=message):
            function(*arguments)
    with pytest.raises(ValueError, match="exact must be True or False"):
        radam_variance(5, 0.9, exact=0)  # type: ignore[arg-type]
