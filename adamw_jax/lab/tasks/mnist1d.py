"""Generate MNIST-1D: ten one-dimensional glyphs, hidden by padding, shifts, ramps and noise.

After the description of Greydanus & Kobak, Scaling Down Deep Learning with MNIST-1D (2024, arXiv
2011.14439): a glyph of 12 points is padded with zeros, scaled, shifted, sheared, resampled to 40
points, and gets correlated and independent noise. Glyphs and code are our own, so accuracies cannot
be compared with published numbers.

>>> generate(3, seed=0).inputs.shape
(3, 40)
"""

from __future__ import annotations

import numpy as np

from adamw_jax.lab.tasks.data_set import DataSet, Split, standardized

POINTS = 12
LENGTH = 40
PADDING = (36, 60)
SCALE = 0.4
SHEAR = 0.75
CORRELATED = 0.25
CORRELATION_LENGTH = 2.0
INDEPENDENT = 0.02
HEIGHT = 2.4

# Position of the pen from left (0) to right (1) while a digit is drawn from top to bottom.
GLYPHS = np.array(
    [
        [0.45, 0.70, 0.85, 0.94, 0.98, 1.00, 1.00, 0.98, 0.94, 0.85, 0.70, 0.45],
        [0.15, 0.40, 0.70, 1.00, 0.60, 0.60, 0.60, 0.60, 0.60, 0.60, 0.60, 0.60],
        [0.35, 0.75, 0.98, 1.00, 0.86, 0.66, 0.46, 0.30, 0.16, 0.08, 0.52, 1.00],
        [0.35, 0.80, 1.00, 0.84, 0.52, 0.36, 0.52, 0.84, 1.00, 0.94, 0.72, 0.30],
        [0.92, 0.76, 0.60, 0.44, 0.28, 0.12, 1.00, 1.00, 0.70, 0.70, 0.70, 0.70],
        [1.00, 0.60, 0.18, 0.14, 0.20, 0.56, 0.82, 0.96, 1.00, 0.90, 0.64, 0.24],
        [0.88, 0.60, 0.38, 0.22, 0.12, 0.08, 0.40, 0.84, 0.98, 0.90, 0.60, 0.30],
        [0.30, 0.66, 1.00, 0.92, 0.84, 0.76, 0.66, 0.56, 0.46, 0.38, 0.30, 0.22],
        [0.40, 0.72, 0.80, 0.66, 0.44, 0.40, 0.62, 0.88, 1.00, 0.94, 0.74, 0.40],
        [0.30, 0.66, 0.92, 1.00, 0.88, 0.56, 0.84, 0.78, 0.70, 0.58, 0.40, 0.16],
    ]
)


def generate(count: int, seed: int) -> Split:
    """Generate examples; the same count and seed give the same examples.

    Args:
      count: number of examples, distributed evenly over the classes.
      seed: seed of the random generator, >= 0.

    Returns:
      Inputs of shape (count, 40), not standardized, and labels in 0..9, in random order.
    """
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % len(GLYPHS)).astype(np.int32)
    padding = rng.integers(PADDING[0], PADDING[1] + 1, size=(count, 1))
    start = np.floor(rng.random((count, 1)) * (padding + 1))
    scale = 1 + SCALE * (rng.random((count, 1)) - 0.5)
    shear = SHEAR * rng.standard_normal((count, 1))

    # Resampling: the position of each of the 40 grid points in the glyph.
    grid = np.linspace(0, 1, LENGTH)[None]
    place = grid * (POINTS + padding - 1) - start
    signal = scale * _read_glyphs(labels, place)
    correlated = rng.standard_normal((count, LENGTH)) @ _smoothing()
    independent = rng.standard_normal((count, LENGTH))
    ramp = shear * (grid - 0.5)
    inputs = signal + CORRELATED * correlated + INDEPENDENT * independent + ramp
    return Split(inputs.astype(np.float32), labels)


def _read_glyphs(labels: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Interpolate linearly in the glyph of each example; zero outside it."""
    padded = np.pad(HEIGHT * (GLYPHS - 0.5), ((0, 0), (1, 1)))  # edges ramp down to zero
    place = np.clip(place + 1, 0, POINTS + 1)
    left = np.minimum(np.floor(place).astype(int), POINTS)
    weight = place - left
    row = labels[:, None]
    return (1 - weight) * padded[row, left] + weight * padded[row, left + 1]


def _smoothing() -> np.ndarray:
    """Return a matrix that turns white noise into correlated noise of variance 1."""
    distance = np.subtract.outer(np.arange(LENGTH), np.arange(LENGTH))
    kernel = np.exp(-0.5 * (distance / CORRELATION_LENGTH) ** 2)
    return kernel / np.sqrt((kernel**2).sum(axis=0, keepdims=True))


def mnist1d() -> DataSet:
    """Return 4,000 training, 2,000 validation and 2,000 test examples."""
    train, validation, test = standardized(
        generate(4000, seed=1), generate(2000, seed=2), generate(2000, seed=3)
    )
    return DataSet(
        name="mnist1d",
        title="MNIST-1D",
        about=(
            "4,000 generated signals of 40 points in 10 classes (own generator, fixed seed), "
            "2,000 more to choose settings and 2,000 to report."
        ),
        train=train,
        validation=validation,
        test=test,
        classes=len(GLYPHS),
    )
