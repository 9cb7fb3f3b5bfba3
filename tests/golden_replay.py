"""Replays recorded gradients through a transformation, and measures how far off it comes out.

In float64 the parameters after every step agree to the manifest's tolerance. In float32 their
*change* since the start agrees element by element: the error is at most 1e-4 of the largest change
that the element has made so far, plus what adding t updates to a float32 number may round, t times
half a unit in the last place. An average may be computed from two such numbers, which rounds once
more.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamw_jax import eval_params
from tests.catalogue import at, one_operation_at_a_time
from tests.golden_cases import AVERAGES, Case

FEW = 60
"""Steps up to which evaluating them one operation at a time is quicker than compiling them."""

HALF_ULP = 2.0**-24
FLOAT32_RTOL = 1e-4
FAR = 1e-2
"""A trajectory whose change is off by more than this share is another trajectory."""

Trajectory = dict[str, np.ndarray]


def replay(case: Case, tx: optax.GradientTransformation) -> Trajectory:
    """Parameters (and slow weights) after every step, in the precision of the current context."""
    dtype = jax.dtypes.canonicalize_dtype(float)

    def tree(kind: str) -> dict[str, jax.Array]:
        return {leaf: jnp.asarray(case.arrays[f"{kind}_{leaf}"], dtype) for leaf in case.leaves}

    kinds = {name.partition("_")[0] for name in case.reference}
    average = next((kind for kind in AVERAGES if kind in kinds), "")
    seen = _trajectory(tx, average, tree("params_0"), tree("grads"))
    result = {f"{k}_{leaf}": np.asarray(x) for k, v in seen.items() for leaf, x in v.items()}
    return {name: result[name] for name in case.reference}


def _trajectory(tx: Any, average: str, params: Any, gradients: Any) -> Any:
    """What is to be compared after every step, stacked; in float64 compiled, as in training."""

    def step(carry: Any, gradient: Any) -> Any:
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        seen = {"params": params, **({average: eval_params(state, params)} if average else {})}
        return (params, state), seen

    steps = len(jax.tree.leaves(gradients)[0])
    if jax.dtypes.canonicalize_dtype(float) == np.float64 or steps > FEW:
        whole = jax.jit(lambda p, g: jax.lax.scan(step, (p, tx.init(p)), g)[1])
        return whole(params, gradients)
    carry, rows = (params, tx.init(params)), []
    single = one_operation_at_a_time(step, carry, at(gradients, 0))
    for i in range(steps):
        carry, seen = single(carry, at(gradients, i))
        rows.append(seen)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def assert_matches(case: Case, got: Trajectory, share: float | None = None) -> None:
    """Equal to the reference at the manifest's tolerance.

    With ``share``, no error of a change is more than that of the element's largest change so far.
    """
    rtol, atol = case.tolerance
    for name, want in case.reference.items():
        assert got[name].dtype == want.dtype == np.float64
        if share is None:
            np.testing.assert_allclose(
                got[name], want, rtol=rtol, atol=atol, err_msg=f"{case.label}: {name}"
            )
    if share is not None:
        apart = distance(case, got)
        assert apart <= share, f"{case.label} is off by {apart:.3g} of its change, not {share:.3g}"


def change_errors(case: Case, got: Trajectory) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By array: the error of the change, and the largest change so far, of every element."""
    result = {}
    for name, want in case.reference.items():
        start = case.arrays[f"params_0_{name.partition('_')[2]}"]
        here = got[name].astype(np.float64) - start.astype(got[name].dtype).astype(np.float64)
        largest = np.maximum.accumulate(np.abs(want - start), axis=0)
        result[name] = np.abs(here - (want - start)), largest
    return result


def float32_excess(case: Case, got: Trajectory) -> float:
    """The largest error in float32, over what this module's docstring allows."""
    worst = 0.0
    for name, (error, largest) in change_errors(case, got).items():
        assert got[name].dtype == np.float32
        want = case.reference[name]
        additions = np.arange(1, len(want) + 1).reshape(-1, *[1] * (want.ndim - 1))
        additions = additions + name.startswith(AVERAGES)
        size = np.maximum.accumulate(np.maximum(np.abs(want), np.abs(got[name])), axis=0)
        allowed = FLOAT32_RTOL * largest + HALF_ULP * additions * size
        excess = error / np.maximum(allowed, np.finfo(np.float64).tiny)
        worst = float(np.max(excess, initial=worst))
    return worst


def assert_matches_in_float32(case: Case, got: Trajectory) -> None:
    """Within the bound of this module's docstring."""
    excess = float32_excess(case, got)
    assert excess <= 1.0, f"{case.label} is off by {excess:.3g} times what is allowed"


def distance(case: Case, got: Trajectory) -> float:
    """The largest error of a change, as a share of the element's largest change so far."""
    shares = [
        error[largest > 0] / largest[largest > 0]
        for error, largest in change_errors(case, got).values()
    ]
    return max(float(np.max(share, initial=0.0)) for share in shares)


def assert_told_apart(case: Case, got: Trajectory) -> None:
    """Far from the reference, as from a recorded mistake or from another form."""
    apart = distance(case, got)
    assert apart > FAR, f"{case.label} is reproduced up to {apart:.3g}, and must not be"
