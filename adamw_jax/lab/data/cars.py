"""Read Stanford Cars from a folder of the user, after a check that it is whole.

The author's site is gone, so the data set is not downloaded. The folder must have

* ``cars_train/*.jpg`` and ``cars_test/*.jpg``,
* ``devkit/cars_train_annos.mat``,
* ``cars_test_annos_withlabels.mat``.

Krause, Stark, Deng & Fei-Fei, 3D Object Representations for Fine-Grained Categorization, 2013.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adamw_jax.lab.data.cache import folder, sha256

CLASSES = 196
SIZES = {"train": 8144, "test": 8041}
ANNOTATIONS = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
LABELS_OF_TEST = "790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05"
"""SHA-256 of the annotations of the test images."""

Listed = tuple[list[Path], np.ndarray]


def place() -> Path:
    """Return the usual folder: ``cars`` in the cache folder."""
    return folder() / "cars"


def verify(root: Path) -> dict[str, Listed]:
    """Return the images and labels of the real data set, or raise ``ValueError``.

    Args:
      root: the folder.

    Returns:
      For ``"train"`` and ``"test"`` the paths of the images and their labels, int32 from 0 to 195.
    """
    found = listed(root)
    for name, size in SIZES.items():
        if len(found[name][0]) != size:
            raise ValueError(
                f"{root / ANNOTATIONS[name]} must list {size} images, got {len(found[name][0])}."
            )
    if sha256(root / ANNOTATIONS["test"]) != LABELS_OF_TEST:
        raise ValueError(f"{root / ANNOTATIONS['test']} is not the one that was published.")
    return found


def listed(root: Path) -> dict[str, Listed]:
    """Return what ``verify`` does, for a folder in this form that may have fewer images."""
    found = {}
    for name, listing in ANNOTATIONS.items():
        rows = _annotations(root / listing)
        paths = [root / f"cars_{name}" / file for file, _ in rows]
        bad = [file for file, _ in rows if Path(file).name != file or "\\" in file]
        if bad:
            raise ValueError(f"{root / listing} must name files only, got {bad[0]!r}.")
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise ValueError(
                f"{root} must have {len(paths)} images in cars_{name}, but {len(missing)} are "
                f"missing, such as {missing[0].name}."
            )
        labels = np.asarray([label for _, label in rows], np.int64) - 1
        if labels.size == 0 or labels.min() < 0 or labels.max() >= CLASSES:
            raise ValueError(f"{root / listing} must have labels from 1 to {CLASSES}.")
        found[name] = paths, labels.astype(np.int32)
    return found


def images(paths: list[Path], size: int = 224) -> np.ndarray:
    """Return images as uint8 of shape (n, size, size, 3): the middle of each, scaled to fit."""
    from PIL import Image, ImageOps

    out = np.empty((len(paths), size, size, 3), np.uint8)
    for number, path in enumerate(paths):
        try:
            with Image.open(path) as image:
                fitted = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
                out[number] = np.asarray(fitted)
        except (OSError, Image.DecompressionBombError) as error:
            raise ValueError(f"cannot read the image {path}: {error}") from error
    return out


def write(root: Path, count: int, size: int = 64, seed: int = 0) -> None:
    """Write a synthetic twin: a folder in the same form with ``count`` images in each part."""
    import scipy.io
    from PIL import Image

    rng = np.random.default_rng(seed)
    kind = [("fname", object), ("class", object)]
    for name, listing in ANNOTATIONS.items():
        (root / f"cars_{name}").mkdir(parents=True)
        rows = np.zeros((1, count), dtype=kind)
        for i in range(count):
            label, file = int(rng.integers(CLASSES)), f"{i + 1:05d}.jpg"
            pixels = rng.integers(0, 128, (size, size, 3)) + np.array([label % 128, label // 2, 64])
            Image.fromarray(pixels.astype(np.uint8)).save(root / f"cars_{name}" / file)
            rows[0, i] = (file, label + 1)
        (root / listing).parent.mkdir(exist_ok=True)
        scipy.io.savemat(root / listing, {"annotations": rows})


def _annotations(path: Path) -> list[tuple[str, int]]:
    import scipy.io

    try:
        content: Mapping[str, Any] = scipy.io.loadmat(path, squeeze_me=True)
        rows = np.atleast_1d(content["annotations"])
        return [(str(row["fname"]), int(row["class"])) for row in rows]
    except Exception as error:  # scipy raises many kinds at a damaged file
        raise ValueError(
            f"cannot read the annotations of Stanford Cars in {path}: {error}. Put the data set "
            f"into {place()}, or a link to it."
        ) from error
