"""Every test runs under strict promotion, without rank promotion, and else as on a user's machine.

That is one device and JAX's own configuration. A test that needs several devices is marked
``devices``, one that is compiled quickly to save time ``quick``.
"""

from __future__ import annotations

import collections
import gc
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import pytest

collect_ignore = ["typed_calls.py", "data/torch/record.py"]  # for pyright; for PyTorch
DEVICES = 8
QUICK_RUN = "ADAMW_JAX_QUICK_TESTS" in os.environ

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Compilation makes the time of an example vary; the examples themselves must not.
hypothesis.settings.register_profile("project", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("project")


@pytest.fixture
def x64():
    """Runs a test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(items):
    """Marks rows beyond a sample ``slow``, beyond three samples ``long``; skips without devices.

    Docstrings are ``slow``, too.
    """
    tables = collections.defaultdict(list)
    for item in items:
        if sample := item.get_closest_marker("sample"):
            tables[item.nodeid.partition("[")[0], *sample.args].append(item)
        if isinstance(item, pytest.DoctestItem):
            item.add_marker(pytest.mark.slow)
    for (_, size), rows in tables.items():
        quick, more = ({i * len(rows) // n for i in range(n)} for n in (size, 3 * size))
        for i in {*range(len(rows))} - quick:
            rows[i].add_marker(pytest.mark.slow)
            if i not in more:
                rows[i].add_marker(pytest.mark.long)
    if jax.device_count() < DEVICES:
        reason = f"needs {DEVICES} devices: make test runs it beside, with so many simulated"
        for item in items:
            if item.get_closest_marker("devices"):
                item.add_marker(pytest.mark.skip(reason=reason))


class LongFirst:
    """Puts the tests marked ``first`` at the beginning of what each of the two workers gets."""

    @pytest.hookimpl(trylast=True)  # of the selected tests
    def pytest_collection_modifyitems(self, items):
        """Each worker gets one half of the list, and takes from the end of the other's."""
        long = [item for item in items if item.get_closest_marker("first")]
        rest = [item for item in items if not item.get_closest_marker("first")]
        half = len(rest) // 2
        items[:] = long[::2] + rest[:half] + long[1::2] + rest[half:]


def pytest_configure(config):
    """Adds the hook that comes last, and looks for garbage rarely: tracing makes much of it."""
    config.pluginmanager.register(LongFirst())
    gc.set_threshold(5_000, 10, 10)


def pytest_collection_finish():
    """The modules and their tables stay: the collector need not look at them again."""
    gc.freeze()


@pytest.fixture(autouse=True)
def compilation(request):
    """Compiles as users do, but for what is marked ``quick``, and in a quick run for all.

    Compiling is most of what nearly all tests do, and without XLA's optimizations it takes half
    the time. What judges XLA's programs, or needs their exact rounding, is marked ``optimized``.
    """
    wanted = QUICK_RUN or request.node.get_closest_marker("quick") is not None
    wanted = wanted and request.node.get_closest_marker("optimized") is None
    jax.config.update("jax_disable_most_optimizations", wanted)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
