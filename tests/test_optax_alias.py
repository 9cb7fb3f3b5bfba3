"""optax's own tests of its optimizers, with ours in their place.

The installed ``optax/_src/alias_test.py`` runs in a process of its own, one per group of names, for
which this file is also the pytest plugin: it replaces ``optax.adam`` and its kin by our functions
with their plain defaults, and keeps the cases of that name. Nothing of optax's is copied.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import jax.numpy as jnp
import optax
import pytest

import adamw_jax

GROUPS = (("adabelief", "adam", "adamax", "lamb"), ("adamw", "amsgrad", "lars", "radam"))
NAMES = tuple(sorted(name for group in GROUPS for name in group))
CHOSEN = "ADAMW_JAX_ALIAS_UNDER_TEST"

CASES = 16
"""4 optimizations, extra arguments, injection, 2 kept dtypes, 6 stable states, 2 accumulations."""

DEPARTURE = "test_explicit_dtype"
"""Asks for optax's field ``mu`` by name, and for bfloat16 moments of bfloat16 parameters.

Our accumulators have other names and are float32 at least, by design. The same cells stand below in
our terms, and the process must collect them, so that they cannot vanish unseen.
"""


def pytest_configure(config: Any) -> None:
    """As a plugin: puts our functions in the place of optax's."""
    if CHOSEN not in os.environ:
        return
    from optax._src import alias

    for name in NAMES:
        for module in (optax, alias):
            setattr(module, name, getattr(adamw_jax, name))


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """As a plugin: keeps the cases of the chosen name."""
    if CHOSEN not in os.environ:
        return
    chosen = re.compile(rf"opt_name='?({os.environ[CHOSEN]})'?[,)]")
    named = [i for i in items if chosen.search(getattr(i.function, "__x_params_repr__", ""))]
    departures = [item for item in named if item.name.startswith(DEPARTURE)]
    assert len(departures) == 16  # adam in one group, adamw in the other
    items[:] = [item for item in named if item not in departures]


@pytest.mark.first
@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS, ids=" ".join)
def test_optax_alias_test_passes_with_ours(group: Any, tmp_path: pathlib.Path) -> None:
    """Every case of the names passes."""
    spec = importlib.util.find_spec("optax._src.alias_test")
    if spec is None or spec.origin is None:
        pytest.skip("the installed optax comes without its tests")
    here = pathlib.Path(__file__)
    paths = [str(here.parent), str(here.parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "JAX_NUMPY"))},
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # a hundred programs that run for a moment
        CHOSEN: "|".join(group),
    }
    command = [sys.executable, "-m", "pytest", "-p", here.stem, "-p", "no:cacheprovider"]
    options = ["-c", os.devnull, "--rootdir", str(tmp_path), "-q", "-rf", "--tb=short"]
    result = subprocess.run(
        [*command, *options, spec.origin],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    output = result.stdout[-6000:] + result.stderr[-2000:]
    assert result.returncode == 0, output
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed is not None, output
    assert int(passed[1]) >= CASES * len(group), output
    assert " skipped" not in result.stdout, output


@pytest.mark.parametrize("mu_dtype", ["bfloat16", "float32", None])
@pytest.mark.parametrize("params_dtype", ["bfloat16", "float32", "complex64", None])
@pytest.mark.parametrize("factory", [adamw_jax.adam, adamw_jax.adamw], ids=["adam", "adamw"])
def test_explicit_dtype_in_our_terms(factory: Any, params_dtype: Any, mu_dtype: Any) -> None:
    """A given ``mu_dtype`` is taken for real parameters; without one it is float32 at least."""
    params = jnp.zeros(2, params_dtype)
    tx = factory(0.1, mu_dtype=mu_dtype)
    state = tx.init(params)
    first = state.stages["estimate_moments"].first.moment
    if params_dtype == "complex64":
        assert first.dtype == jnp.complex64
    else:
        assert first.dtype == jnp.dtype(mu_dtype or "float32")
    _, after = tx.update(params, state, params)
    assert after.stages["estimate_moments"].first.moment.dtype == first.dtype


@pytest.mark.parametrize("name", NAMES)
def test_positional_order_and_keywords_are_optaxs(name: str) -> None:
    """A call of optax's function is a call of ours: one edit."""
    theirs = inspect.signature(getattr(optax, name)).parameters
    ours = inspect.signature(getattr(adamw_jax, name)).parameters

    def positional(parameters: Any) -> list[str]:
        return [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]

    assert set(theirs) <= set(ours)
    assert positional(ours)[: len(positional(theirs))] == positional(theirs)
    for argument, parameter in theirs.items():
        default = ours[argument].default
        assert default == parameter.default or (default, parameter.default) == (None, 0.0), argument
