"""Compare what a step costs beside its arithmetic, on a network of 6 leaves on a CPU.

Such a step mostly waits for JAX: for the buffers that cross the boundary of `jit`, for Python, and
for the start of kernels. Both contenders run in one process, in rounds of a few steps each, so that
other work on the machine slows both.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import contenders, report

SHAPES = ((64, 128), (128, 110), (110, 10))
SCANNED = 100


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two contenders, how their step runs (`jit`, `scan` or `eager`), and the largest ratio."""

    title: str
    ours: str
    theirs: str
    form: str
    limit: float


OURS, OPTAX = "ours:adamw", "optax:adamw"
COMPARISONS = (
    Comparison("jitted", OURS, OPTAX, "jit", 1.08),
    Comparison("jitted, with Lookahead", f"{OURS}+lookahead", f"{OPTAX}+lookahead", "jit", 1.15),
    Comparison(f"{SCANNED} steps in a `lax.scan`", OURS, OPTAX, "scan", 1.08),
    Comparison("outside of `jit`", OURS, OPTAX, "eager", 1.25),
)

HEAD = f"""# The cost of a step beside its arithmetic

Made by `python -m benchmarks dispatch`. A network of 6 leaves and
{sum(a * b + b for a, b in SHAPES):,} parameters, whose step mostly waits for JAX: for the buffers
that cross the boundary of `jit`, for Python, and for the start of kernels. Both contenders run in
one process. In each round each takes a few steps, in an order that alternates. "ratio" is the
median over the rounds of our time over that of optax in the same round, "processor" the same of
processor time, which other programs disturb less; the times are medians.
"""


def _steps(name: str, form: str) -> Callable[[int], None]:
    """Return a function that takes a number of steps and waits for them."""
    import jax
    import jax.numpy as jnp

    from benchmarks.jax_step import step_of

    rule = contenders.build(contenders.parse(name))
    params = {
        f"layer{i}": {"kernel": jnp.full(shape, 0.01), "bias": jnp.zeros(shape[1])}
        for i, shape in enumerate(SHAPES)
    }
    gradients = jax.tree.map(lambda x: x + 0.1, params)
    step = step_of(rule, SCANNED if form == "scan" else 1)
    step = step if form == "eager" else jax.jit(step, donate_argnums=(0, 1))
    carried = jax.tree.map(jnp.copy, rule.carry(params))
    held = (carried, jax.tree.map(jnp.copy, rule.transformation.init(carried)))

    def run(count: int) -> None:
        nonlocal held
        for _ in range(count):
            held = step(*held, gradients)
        jax.block_until_ready(held)

    return run


def compare(this: Comparison, rounds: int) -> dict[str, float]:
    """Return the median ratios of wall and processor time, and the median times in microseconds."""
    sides = [_steps(name, this.form) for name in (this.ours, this.theirs)]
    count = {"jit": 25, "scan": 1, "eager": 2}[this.form]
    for side in sides:
        side(2 * count)
    wall: list[list[float]] = []
    processor: list[list[float]] = []
    for at in range(rounds):
        times, used = [0.0, 0.0], [0.0, 0.0]
        for i in (0, 1) if at % 2 else (1, 0):
            begun, before = time.perf_counter(), time.process_time()
            sides[i](count)
            times[i], used[i] = time.perf_counter() - begun, time.process_time() - before
        wall.append(times)
        processor.append(used)
    steps = count * (SCANNED if this.form == "scan" else 1)
    ours, theirs = (1e6 / steps * statistics.median(side) for side in zip(*wall, strict=True))
    return {
        "ratio": statistics.median(a / b for a, b in wall),
        "processor": statistics.median(a / b for a, b in processor),
        "ours": ours,
        "theirs": theirs,
    }


def write(path: Path, rounds: int) -> None:
    """Measure all comparisons and write the page."""
    import jax

    cells = [["contenders", "step", "ratio", "processor", "at most", "ours us", "optax us"]]
    for this in COMPARISONS:
        with jax.numpy_dtype_promotion("standard"):  # optax needs it
            found = compare(this, rounds)
        ratios = [f"{found[key]:.2f}" for key in ("ratio", "processor")]
        times = [f"{found[key]:,.0f}" for key in ("ours", "theirs")]
        what = f"`{this.ours}` / `{this.theirs}`"
        cells.append([what, this.title, *ratios, f"{this.limit:g}", *times])
        print(report.text(cells), end="\n\n", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{HEAD}\n{report.machine()}\n\n{report.markdown(cells)}\n")
