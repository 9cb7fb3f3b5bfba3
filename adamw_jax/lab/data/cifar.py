"""Read CIFAR-10 and CIFAR-100 in their binary form, which needs no pickle.

A record is one label byte (CIFAR-100: a coarse and a fine one), then 32 x 32 red, green and blue
bytes, row by row. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import tarfile
from pathlib import Path

import numpy as np

from adamw_jax.lab.data.archives import members
from adamw_jax.lab.data.cache import Remote, get

PIXELS = 3 * 32 * 32
Images = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Cifar:
    """One of the two data sets.

    Attributes:
      remote: the archive.
      train: its members for training, with the number of records of each.
      test: the same for the test.
      classes: number of classes.
      label_bytes: bytes before the pixels, of which the last is the label.
    """

    remote: Remote
    train: dict[str, int]
    test: dict[str, int]
    classes: int
    label_bytes: int

    def load(self) -> tuple[Images, Images]:
        """Return the training and test images of the real data set.

        Returns:
          For each ``(images, labels)``: uint8 of shape (n, 32, 32, 3), and int32 of shape (n,).
        """
        train, test = self.read(get(self.remote))
        for (_, labels), listed in ((train, self.train), (test, self.test)):
            if len(labels) != sum(listed.values()):
                raise ValueError(
                    f"{self.remote.name} must have {sum(listed.values())} records in "
                    f"{', '.join(listed)}, got {len(labels)}."
                )
        return train, test

    def read(self, path: Path) -> tuple[Images, Images]:
        """Return the images of an archive in this form, which may have fewer records."""
        record = self.label_bytes + PIXELS
        listed = {**self.train, **self.test}
        found = members(path, {name: count * record for name, count in listed.items()})
        train, test = (
            [self._decoded(name, found[name]) for name in part] for part in (self.train, self.test)
        )
        return _joined(train), _joined(test)

    def write(self, path: Path, records: int, seed: int = 0) -> None:
        """Write a synthetic twin: the same form, with made-up images.

        The images of a class are a fixed pattern in noise, so a model can learn them.

        Args:
          path: the archive to write.
          records: images in each member.
          seed: of images and labels.
        """
        rng = np.random.default_rng(seed)
        patterns = rng.integers(0, 256, (self.classes, PIXELS), dtype=np.uint8)
        with (
            gzip.open(path, "wb", compresslevel=1) as file,
            tarfile.open(fileobj=file, mode="w|") as archive,
        ):
            for name in (*self.train, *self.test):
                labels = rng.integers(0, self.classes, records).astype(np.uint8)
                noise = rng.integers(0, 256, (records, PIXELS), dtype=np.uint8)
                pixels = (patterns[labels] // 2 + noise // 2).astype(np.uint8)
                coarse = np.zeros((records, self.label_bytes - 1), np.uint8)
                content = np.concatenate([coarse, labels[:, None], pixels], 1).tobytes()
                head = tarfile.TarInfo(name)
                head.size = len(content)
                archive.addfile(head, io.BytesIO(content))

    def _decoded(self, name: str, content: bytes) -> Images:
        record = self.label_bytes + PIXELS
        if not content or len(content) % record:
            raise ValueError(
                f"{name} must consist of records of {record} bytes, got {len(content)} bytes."
            )
        rows = np.frombuffer(content, np.uint8).reshape(-1, record)
        labels = rows[:, self.label_bytes - 1].astype(np.int32)
        if labels.max() >= self.classes:
            place = int(np.argmax(labels >= self.classes))
            raise ValueError(
                f"{name} has the label {labels[place]} at byte {place * record}, but there are "
                f"{self.classes} classes."
            )
        planes = rows[:, self.label_bytes :].reshape(-1, 3, 32, 32)
        return planes.transpose(0, 2, 3, 1), labels


def _joined(parts: list[Images]) -> Images:
    return np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts])


CIFAR10 = Cifar(
    Remote(
        "cifar-10-binary.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        170_052_171,
    ),
    {f"cifar-10-batches-bin/data_batch_{i}.bin": 10_000 for i in range(1, 6)},
    {"cifar-10-batches-bin/test_batch.bin": 10_000},
    classes=10,
    label_bytes=1,
)
CIFAR100 = Cifar(
    Remote(
        "cifar-100-binary.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        168_513_733,
    ),
    {"cifar-100-binary/train.bin": 50_000},
    {"cifar-100-binary/test.bin": 10_000},
    classes=100,
    label_bytes=2,
)
