"""Make natural images: patches of photographs that scikit-image and scikit-learn contain.

The class of a patch is the photograph it is from. Patches are grey and standardized one by one, so
that neither color nor brightness gives the class away. The left 62 % of each photograph is for
training; its right part, after a gap, for validation and test, in tiles like a chessboard. Nothing
is downloaded and nothing is copied: both packages contain the photographs.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from adamw_jax.lab.tasks.data_set import DataSet, Split

SIZE, STRIDE, GAP = 32, 16, 8
LEFT, FLAT = 0.62, 0.02
PHOTOGRAPHS = (
    "skimage/data/astronaut.png",
    "skimage/data/coffee.png",
    "skimage/data/rocket.jpg",
    "skimage/data/motorcycle_left.png",
    "skimage/data/hubble_deep_field.jpg",
    "skimage/data/retina.jpg",
    "sklearn/datasets/images/china.jpg",
    "skimage/data/camera.png",
    "skimage/data/grass.png",
    "skimage/data/gravel.png",
    "skimage/data/moon.png",
    "skimage/data/chelsea.png",
    "skimage/data/ihc.png",
    "sklearn/datasets/images/flower.jpg",
    "skimage/data/brick.png",
    "skimage/data/coins.png",
)
"""The last five are those that fine-tuning holds back."""


def photographs(
    which: Iterable[str] = PHOTOGRAPHS, *, per_class: int = 400, held_out: int = 120, seed: int = 0
) -> DataSet:
    """Return patches of shape (32, 32, 1) of some photographs.

    Args:
      which: names of files, of which each is a class.
      per_class: the largest number of training patches of a class.
      held_out: the largest number of validation patches, and of test patches, of a class.
      seed: of the choice of patches.
    """
    which, rng = tuple(which), np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[], [], []]
    for name in which:
        grey = _grey(name)
        cut = int(grey.shape[1] * LEFT)
        train = _patches(grey[:, :cut], STRIDE).reshape(-1, SIZE, SIZE)
        tiles = _patches(grey[:, cut + GAP :], SIZE)
        black = np.indices(tiles.shape[:2]).sum(0) % 2 == 0
        for i, found in enumerate((train, tiles[black], tiles[~black])):
            found = found[found.std((1, 2)) > FLAT]
            order = rng.permutation(len(found))[: held_out if i else per_class]
            parts[i].append(found[order])
    train, validation, test = (_split(part) for part in parts)
    return DataSet(
        name="photographs",
        title="natural images",
        about=f"{len(train):,} patches of 32 by 32 pixels of {len(which)} photographs in "
        f"scikit-image and scikit-learn to train, {len(validation)} to choose, {len(test)} to "
        "report, from other parts of the photographs. The class is the photograph.",
        train=train,
        validation=validation,
        test=test,
        classes=len(which),
    )


def _split(parts: list[np.ndarray]) -> Split:
    inputs = np.concatenate(parts)[..., None]
    mean, deviation = inputs.mean((1, 2, 3), keepdims=True), inputs.std((1, 2, 3), keepdims=True)
    labels = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return Split(((inputs - mean) / (deviation + 1e-3)).astype(np.float32), labels.astype(np.int32))


def _patches(image: np.ndarray, stride: int) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(image, (SIZE, SIZE))
    return windows[::stride, ::stride]


@functools.cache
def _grey(name: str) -> np.ndarray:
    from PIL import Image

    package, _, inside = name.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(
            f"natural images need the photographs in {package}, which is not installed: "
            'pip install "adamw-jax[demo,images]".'
        )
    path = Path(spec.origin).parent / inside
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L"), np.float32) / 255
    except OSError as error:
        raise ValueError(f"cannot read the photograph {path}: {error}") from error
