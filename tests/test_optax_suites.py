"""optax's own tests of what goes around an optimizer, with our Adam family in its place.

As in ``test_optax_alias``, the installed test modules run in processes of their own, for which this
file is also the pytest plugin. It replaces the functions of optax by ours. The cells of
``DEPARTURES`` fail, and no others.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import jax
import pytest

import adamw_jax

CHOSEN = "ADAMW_JAX_SUITE_UNDER_TEST"

SUITES = {
    "state": ("schedules._inject", "tree_utils._state_utils"),
    "core": (
        *("_src.base", "_src.combine", "_src.float64", "_src.linesearch", "_src.transform"),
        *("_src.update", "_src.utils", "_src.numerics", "_src.factorized", "_src.lookahead"),
        *("microbatching._microbatching", "experimental._aggregating"),
        *("transforms._accumulation", "transforms._combining", "transforms._conditionality"),
        *("transforms._constraining", "transforms._freezing", "transforms._layouts"),
        *("transforms._masking", "transforms._monitoring"),
    ),
    # It asks for eight devices, which must be set before the first of its imports.
    "sharded": ("_src.sharding",),
    "contrib common": ("contrib._common",),
    "contrib": (
        *("contrib._schedule_free", "contrib._complex_valued", "contrib._privacy"),
        *("contrib._mechanic", "contrib._sam", "contrib._reduce_on_plateau"),
        *("contrib._galore", "contrib._muon"),
    ),
}
"""The processes, and the modules of ``optax`` whose tests each runs."""

DEPARTURES: dict[str, str] = {
    cell: reason
    for reason, cells in {
        "it asks for the classes or fields of optax's states, and ours are others": (
            "_state_utils::test_adam",
            "_state_utils::test_dict_based_optimizers",
            "_state_utils::test_inject_hparams",
            "_state_utils::test_map_non_params_to_none",
            "_state_utils::test_tree_get_all_with_path [Test with single value in state]",
            "_state_utils::test_tree_get [Test filtering for specific state]",
            "_state_utils::test_tree_set [Test setting a specific state]",
            "_state_utils::test_tree_set [Test setting a state]",
            "_masking::test_masked_state_structure",
            "_galore::test_3d_memory_reduction_with_dimension_numbers",
            "_galore::test_dimension_numbers_right_projection",
            *(f"_galore::test_left_vs_right_projection_state_shapes{i}" for i in range(3)),
            "_galore::test_memory_reduction_vs_full_moments",
            "_galore::test_mu_dtype_controls_moment_dtype",
            "_galore::test_rank_is_clipped_to_min_dimension",
        ),
        "a recipe without inject_hyperparams has a learning rate in its state, too": (
            "_state_utils::test_tree_get_all_with_path [Test with multiple values in state]",
        ),
        "eps_root is None where there is none, and is not injected": (
            "_inject::test_constant_hyperparams",
        ),
        "hyperparameters in bfloat16 are refused, for b2 = 0.999 would be 1": (
            "_inject::test_hyperparam_default_dtype_bf16",
            "_inject::test_hyperparam_default_dtype_f32",
            "_inject::test_hyperparam_dtypes_bf16hyp f32param bf16grad",
            "_inject::test_hyperparam_dtypes_bf16hyp f32param f32_grads",
        ),
        "integer parameters are refused by name": (
            "combine::test_extra_args",
            "_combining::test_extra_args",
        ),
        "it asks for optax's float32 rounding; in float64 the two are equal": (
            "transform::test_rms_match_adam",
            "_schedule_free::test_schedule_free_adamw",
        ),
    }.items()
    for cell in cells
}
"""Cells that depart on purpose, and why: ``module::name``, and the part of it in brackets."""

THEIRS = {
    "_freezing::test_bad_structure_raises",
    "_freezing::test_selective_bad_structure",
    "sharding::test_state_sharding_type_init_match_update_lbfgs",
    "sharding::test_state_sharding_type_preserved_with_jit_lbfgs",
}
"""Cells that fail without us, too, on some versions of jax."""


def _sgd(learning_rate: Any, momentum: Any = None, nesterov: bool = False) -> Any:
    return adamw_jax.sgdw(learning_rate, momentum, nesterov=nesterov)


def _adamaxw(*args: Any, weight_decay: Any = 1e-4, **kwargs: Any) -> Any:
    return adamw_jax.adamax(*args, weight_decay=weight_decay, **kwargs)


_FAMILY = (
    *("adabelief", "adafactor", "adam", "adamax", "adamw", "adan", "amsgrad", "lamb", "lars"),
    *("radam", "scale_by_adam", "scale_by_adamax", "scale_by_adan", "scale_by_amsgrad"),
    "scale_by_radam",
)
OURS = {
    **{name: getattr(adamw_jax, name) for name in _FAMILY},
    "sgd": _sgd,
    "nadam": functools.partial(adamw_jax.adam, nesterov=True),
    "nadamw": functools.partial(adamw_jax.adamw, nesterov=True),
    "adamaxw": _adamaxw,
    "scale_by_belief": adamw_jax.scale_by_adabelief,
    "acprop": adamw_jax.acprop,
    "scale_by_acprop": adamw_jax.scale_by_acprop,
}


def pytest_configure(config: Any) -> None:
    """As a plugin: puts our functions in the place of optax's."""
    if CHOSEN not in os.environ:
        return
    gc.set_threshold(5_000, 10, 10)  # tracing makes much garbage
    import optax.contrib
    from optax._src import alias, transform

    for name, ours in OURS.items():
        modules = [m for m in (optax, alias, transform, optax.contrib) if hasattr(m, name)]
        assert modules, name
        for module in modules:
            setattr(module, name, ours)
    jax.__version__ = "9"  # they compare versions as text, and would skip what needs "0.7.2"


def pytest_runtest_logreport(report: Any) -> None:
    """As a plugin: remembers the cells that fail, and which part of one."""
    if report.failed:
        module = pathlib.Path(report.location[0]).stem.removesuffix("_test")
        part = getattr(getattr(report, "context", None), "msg", None)
        _FAILED.append(f"{module}::{report.nodeid.rpartition('::')[2]}{f' [{part}]' * bool(part)}")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """As a plugin: tells them."""
    for cell in _FAILED:
        terminalreporter.write_line(f"{MARK}{cell}")


_FAILED: list[str] = []
MARK = "departs: "


@pytest.mark.first
@pytest.mark.slow
@pytest.mark.parametrize(
    "suite",
    [pytest.param(x, marks=[pytest.mark.long] * x.startswith("contrib")) for x in SUITES],
)
def test_optax_passes_its_tests_with_ours(suite: str, tmp_path: pathlib.Path) -> None:
    """Every cell passes but for those that depart."""
    specs = [importlib.util.find_spec(f"optax.{name}_test") for name in SUITES[suite]]
    paths = [spec.origin for spec in specs if spec is not None and spec.origin is not None]
    if len(paths) < len(specs):
        pytest.skip("the installed optax comes without these tests")
    here = pathlib.Path(__file__)
    search = [str(here.parent), str(here.parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "JAX_NUMPY"))},
        "PYTHONPATH": os.pathsep.join(path for path in search if path),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={8 if suite == 'sharded' else 1} "
        "--xla_cpu_parallel_codegen_split_count=1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        CHOSEN: suite,
    }
    command = [sys.executable, "-m", "pytest", "-p", here.stem, "-p", "no:cacheprovider"]
    options = ["-c", os.devnull, "--rootdir", str(tmp_path), "-q", "-rfE", "--tb=short"]
    result = subprocess.run(
        [*command, *options, *paths],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    output = result.stdout[-6000:] + result.stderr[-2000:]
    assert result.returncode in (0, 1), output
    assert re.search(r"\d+ passed", result.stdout), output
    lines = result.stdout.splitlines()
    failed = {line.removeprefix(MARK) for line in lines if line.startswith(MARK)}
    modules = [name.rpartition(".")[2] for name in SUITES[suite]]
    declared = {cell for cell in DEPARTURES if cell.partition("::")[0] in modules}
    assert not failed - declared - THEIRS, output
    assert not declared - failed, "these do not depart any more"
