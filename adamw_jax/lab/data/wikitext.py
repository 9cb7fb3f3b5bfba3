"""Read WikiText-2, word by word, from the archive of its authors.

Its members ``wiki.*.tokens`` have one paragraph a line, words between spaces, and ``<unk>`` for
rare words. The end of a line is the word ``<eos>``. Merity, Xiong, Bradbury & Socher, Pointer
Sentinel Mixture Models, ICLR 2017, arXiv 1609.07843.
"""

from __future__ import annotations

import functools
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from adamw_jax.lab.data.archives import members
from adamw_jax.lab.data.cache import Remote, get
from adamw_jax.lab.data.text import END, SPLITS, UNKNOWN, Text, numbered

WIKITEXT2 = Remote(
    "wikitext-2-v1.zip",
    "https://s3.amazonaws.com/research.metamind.io/wikitext/wikitext-2-v1.zip",
    "92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c",
    4_475_746,
)
MEMBERS = {
    "train": "wikitext-2/wiki.train.tokens",
    "validation": "wikitext-2/wiki.valid.tokens",
    "test": "wikitext-2/wiki.test.tokens",
}
WORDS, VOCABULARY = {"train": 2_088_628, "validation": 217_646, "test": 245_569}, 33_278
LARGEST = 16 << 20
"""Bytes that a member may have; the largest has 11 MB."""


@functools.cache
def wikitext2() -> Text:
    """Return WikiText-2, after a download if it is not in the cache folder."""
    text = read_tokens(get(WIKITEXT2))
    found = {name: len(getattr(text, name)) for name in SPLITS}
    if (found, len(text.words)) != (WORDS, VOCABULARY):
        raise ValueError(
            f"{WIKITEXT2.name} must have {WORDS} words and {VOCABULARY} different ones, got "
            f"{found} and {len(text.words)}."
        )
    return text


def read_tokens(path: Path) -> Text:
    """Return the text of an archive in this form.

    Args:
      path: the ``.zip`` file.
    """
    found = members(path, dict.fromkeys(MEMBERS.values(), LARGEST))
    parts = {
        split: [
            word
            for line in found[name].decode().removesuffix("\n").split("\n")
            for word in [*line.split(), END]
        ]
        for split, name in MEMBERS.items()
    }
    sizes = ", ".join(f"{len(words):,} to {verb}" for verb, words in
                      zip(("train", "choose", "test"), parts.values(), strict=True))  # fmt: skip
    return numbered(parts, about=f"WikiText-2: {sizes}")


def write_tokens(
    path: Path, sizes: Mapping[str, int] = WORDS, vocabulary: int = VOCABULARY, seed: int = 0
) -> None:
    """Write a synthetic twin: the same form, with made-up words.

    Half of the words follow from the word before by a fixed rule, the others are drawn by Zipf's
    law, so a model can learn them. The training part has every word.

    Args:
      path: the archive to write.
      sizes: words of each part, with the ends of lines.
      vocabulary: number of different words, with ``<unk>`` and ``<eos>``.
      seed: of the words.
    """
    rng = np.random.default_rng(seed)
    names = np.array([UNKNOWN, *(f"w{i}" for i in range(vocabulary - 2)), END])
    follower = rng.permutation(vocabulary)
    law = np.cumsum(1 / np.arange(1, vocabulary + 1))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for split, name in MEMBERS.items():
            words = np.searchsorted(law, law[-1] * rng.random(sizes[split]))
            ruled = np.flatnonzero(rng.random(sizes[split]) < 0.5)
            for place in ruled[ruled > 0]:
                words[place] = follower[words[place - 1]]
            if split == "train":
                words[-vocabulary:] = np.arange(vocabulary)
            words[-1] = vocabulary - 1
            text = " ".join(names[words])
            archive.writestr(name, text.replace(f" {END} ", "\n").replace(f" {END}", "\n")
                             .replace(f"{END} ", "\n"))  # fmt: skip


@functools.lru_cache(maxsize=2)
def twin(sizes: tuple[int, ...], vocabulary: int) -> Text:
    """Return the text of a synthetic twin.

    Args:
      sizes: words of the three parts.
      vocabulary: number of different words.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / WIKITEXT2.name
        write_tokens(path, dict(zip(SPLITS, sizes, strict=True)), vocabulary)
        return read_tokens(path)
