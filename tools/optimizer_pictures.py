"""Draw docs/results/pictures/, the path of every optimizer in two valleys; --check compares.

Rosenbrock's function has a curved valley and exact gradients. The noisy valley is a rotated,
ill-conditioned quadratic that is shifted at random in every step. In each valley each optimizer
gets the learning rate from one grid that gives the smallest mean loss at the end.
"""

from __future__ import annotations

import csv
import io
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

import adamw_jax as aj
from adamw_jax.lab.plots.style import INK, MUTED, RC, SERIES

FOLDER = pathlib.Path(__file__).parents[1] / "docs" / "results" / "pictures"
NUMBERS = FOLDER / "numbers.csv"
STEPS = {"rosenbrock": 500, "noisy": 150}
SEEDS = 8
RATES = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)

VALLEYS = {"rosenbrock": "Rosenbrock", "noisy": "Noisy valley"}
START = {"rosenbrock": (-1.5, 2.0), "noisy": (-2.0, 0.5)}
BEST = {"rosenbrock": (1.0, 1.0), "noisy": (0.0, 0.0)}
FRAME = {"rosenbrock": ((-2.0, 2.0), (-0.9, 3.3)), "noisy": ((-2.3, 1.3), (-1.6, 1.4))}
STEEPNESS, NARROWNESS, SHAKE = 100.0, 25.0, 0.3
LARGEST = 60_000


def rosenbrock(xy: Any) -> Any:
    """Return Rosenbrock's function; its minimum, 0, is at (1, 1)."""
    x, y = xy[0], xy[1]
    return (1.0 - x) ** 2 + STEEPNESS * (y - x**2) ** 2


def bowl(xy: Any) -> Any:
    """Return a quadratic of condition number 25 with axes at 30 degrees; its minimum is at 0."""
    across = 0.5 * xy[0] - np.sqrt(0.75) * xy[1]
    along = np.sqrt(0.75) * xy[0] + 0.5 * xy[1]
    return 0.5 * (along**2 + NARROWNESS * across**2)


def walk(name: str, valley: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the path, the points of evaluation, and the true loss there.

    Returns:
      Arrays of shape (rates, seeds, steps + 1, 2), the same, and (rates, seeds, steps + 1).
    """
    row = aj.info(name)
    true = rosenbrock if valley == "rosenbrock" else bowl
    shift = np.zeros((1, STEPS[valley], 2))
    if valley == "noisy":
        draws = [np.random.default_rng(seed).standard_normal(shift.shape) for seed in range(SEEDS)]
        shift = SHAKE * np.concatenate(draws)

    def run(rate: jax.Array, shifts: jax.Array) -> Any:
        tx: Any = optax.with_extra_args_support(aj.create(name, lambda count: rate, **row.example))
        start = jnp.asarray(START[valley], jnp.float32)

        def step(carry: Any, shift: jax.Array) -> Any:
            xy, state = carry
            loss, gradient = jax.value_and_grad(lambda xy: true(xy - shift))(xy)
            updates, state = tx.update(gradient, state, xy, value=loss)
            moved: Any = optax.apply_updates(xy, updates)
            return (moved, state), (moved, aj.eval_params(state, moved))

        _, (path, kept) = jax.lax.scan(step, (start, tx.init(start)), shifts)
        path, kept = (jnp.concatenate([start[None], p]) for p in (path, kept))
        return path, kept, jax.vmap(true)(kept)

    both = jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))
    path, kept, loss = both(jnp.asarray(RATES, jnp.float32), jnp.asarray(shift, jnp.float32))
    return np.asarray(path), np.asarray(kept), np.asarray(loss, np.float64)


def chosen(loss: np.ndarray) -> tuple[int, float]:
    """Return the index of the best rate and its mean loss over the last tenth of steps."""
    last = loss.shape[-1] // 10
    with np.errstate(invalid="ignore", over="ignore"):
        means = loss[:, :, -last:].mean(axis=(1, 2))
    means = np.where(np.isfinite(means), means, np.inf)
    return int(means.argmin()), float(means.min())


def draw(name: str, walks: dict[str, Any]) -> tuple[bytes, list[dict[str, Any]]]:
    """Return the picture as PNG, and its numbers."""
    row, numbers = aj.info(name), []
    with mpl.rc_context(RC):
        canvas = Figure(figsize=(8.6, 3.25), layout="constrained")
        left, right, losses = canvas.subplots(1, 3, width_ratios=(1, 1, 0.95))
        given = "".join(f", {key}={value:g}" for key, value in row.example.items())
        title = f"{row.title}{given} ({STEPS['rosenbrock']} and {STEPS['noisy']} steps)"
        canvas.suptitle(title, fontsize=11, fontweight="bold", x=0.012, ha="left")
        for i, (valley, ax) in enumerate(zip(VALLEYS, (left, right), strict=True)):
            path, kept, loss = walks[valley]
            best, end = chosen(loss)
            rate = RATES[best]
            numbers.append(
                {"optimizer": name, "valley": valley, "learning_rate": f"{rate:g}",
                 "loss": f"{end:.3g}", "steps": STEPS[valley],
                 "seeds": loss.shape[1]}
            )  # fmt: skip
            _valley(ax, valley)
            if np.any(path[best, 0] != kept[best, 0]):
                ax.plot(*path[best, 0].T, color=SERIES[i], linewidth=0.7, alpha=0.45)
            ax.plot(*kept[best, 0].T, color=SERIES[i], linewidth=1.2)
            ax.plot(*kept[best, 0, -1], "o", color=SERIES[i], markersize=5, zorder=4)
            ax.set_title(f"{VALLEYS[valley]}: lr {rate:g}, loss {end:.2g}", fontsize=8.5)
            losses.plot(loss[best].mean(axis=0), color=SERIES[i], linewidth=1.2,
                        linestyle=("-", (0, (4, 1.2)))[i], label=VALLEYS[valley])  # fmt: skip
        losses.set(yscale="log", xlabel="step")
        low, high = losses.get_ylim()
        losses.set_ylim(max(low, 1e-12), min(high, 1e5))
        losses.set_title(f"Loss (noisy: mean of {SEEDS} seeds)", fontsize=8.5)
        losses.legend(loc="best", fontsize=7.5, handlelength=2.2)
        for ax in (left, right, losses):
            ax.tick_params(labelsize=7, length=2.5)
            ax.xaxis.label.set_size(8)
        return _png(canvas), numbers


def _valley(ax: Any, valley: str) -> None:
    xlim, ylim = FRAME[valley]
    x, y = np.meshgrid(np.linspace(*xlim, 160), np.linspace(*ylim, 160))
    z = (rosenbrock if valley == "rosenbrock" else bowl)((x, y))
    ax.contour(x, y, z, levels=np.geomspace(0.03, 1000, 10), colors="#b9c2d0", linewidths=0.6)
    ax.plot(*START[valley], "s", color=INK, markersize=4.5, zorder=3)
    ax.plot(*BEST[valley], "*", color=MUTED, markersize=9, zorder=3)
    ax.set(xlim=xlim, ylim=ylim)
    ax.grid(False)


def _png(canvas: Figure) -> bytes:
    """Return the figure as PNG with few colours, so that it is small."""
    agg = FigureCanvasAgg(canvas)
    canvas.set_dpi(100)
    agg.draw()
    picture = Image.fromarray(np.asarray(agg.buffer_rgba())[..., :3].copy())
    out = io.BytesIO()
    picture.quantize(64, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        out, "png", optimize=True
    )
    return out.getvalue()


def wrong() -> list[str]:
    """Return the differences from the registry."""
    names = aj.list_optimizers()
    have = {path.stem: path for path in FOLDER.glob("*.png")}
    out = [f"{name}: no picture" for name in names if name not in have]
    out += [f"{name}: a picture of no optimizer" for name in have if name not in names]
    for name, path in have.items():
        data = path.read_bytes()
        if not data.startswith(b"\x89PNG\r\n\x1a\n") or len(data) > LARGEST:
            out.append(f"{name}: not a PNG of at most {LARGEST} bytes")
    if not NUMBERS.exists():
        return [*out, f"{NUMBERS.name}: missing"]
    rows = _rows()
    wanted = [(name, valley) for name in names for valley in VALLEYS]
    if [(row["optimizer"], row["valley"]) for row in rows] != wanted:
        out.append(f"{NUMBERS.name}: not one row per optimizer and valley")
    if any(float(row["learning_rate"]) not in RATES for row in rows):
        out.append(f"{NUMBERS.name}: a learning rate off the grid")
    return out


def _rows() -> list[dict[str, Any]]:
    with NUMBERS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def main(arguments: list[str]) -> int:
    """Draw the pictures, or with --check return 1 if some are missing or left over."""
    if "--check" in arguments:
        for line in (problems := wrong()):
            print(line)
        if problems:
            print("docs/results/pictures is old; run python tools/optimizer_pictures.py")
        return int(bool(problems))
    only = [name for name in arguments if not name.startswith("-")]
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = _rows() if only else []
    rows = [row for row in rows if row["optimizer"] not in only]
    for name in only or aj.list_optimizers():
        picture, numbers = draw(name, {valley: walk(name, valley) for valley in VALLEYS})
        (FOLDER / f"{name}.png").write_bytes(picture)
        rows += numbers
        print(name, len(picture), *(f"{r['learning_rate']} {r['loss']}" for r in numbers))
    if not only:
        for path in FOLDER.glob("*.png"):
            if path.stem not in aj.list_optimizers():
                path.unlink()
    rows.sort(key=lambda row: (row["optimizer"], [*VALLEYS].index(row["valley"])))
    with NUMBERS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
