"""Read the Wikipedia pages that gensim ships among its tests.

The file is the beginning of a dump of the English Wikipedia, in wiki markup. Its
text is under the licence of Wikipedia, CC BY-SA, so nothing of it is copied here:
``pip install "adamw-jax[text]"`` installs it as a part of gensim.
"""

from __future__ import annotations

import bz2
import functools
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adamw_jax.lab.data.text import END, WORD, Text, divided

FILE = "test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
EMPTY = re.compile(r"\([\s,;:]*\)")
"""Brackets in which only markup was."""

SHORTEST_LINE, SHORTEST_ARTICLE = 9, 500
"""Words of a line and of an article; what is shorter is a caption or a stub."""


@functools.lru_cache(maxsize=2)
def wikipedia(size: int = 2000, limit: int | None = None, held_out: int | None = None) -> Text:
    """Return the articles, of which a tenth are for validation and a tenth for the test.

    Args:
      size: words in the vocabulary.
      limit: words of the training text; None for all.
      held_out: words of each other text; None for all.
    """
    what = "articles of the English Wikipedia from the tests of gensim"
    return divided(_articles(), what, size, limit, held_out)


@functools.cache
def _articles() -> list[list[str]]:
    found = importlib.util.find_spec("gensim")
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            'the Wikipedia text is a part of gensim: pip install "adamw-jax[text]".'
        )
    made = articles(Path(found.origin).parent / FILE)
    return [words for words in made if len(words) >= SHORTEST_ARTICLE]


def articles(path: Path) -> Iterator[list[str]]:
    """Yield the words of every article in a compressed dump of Wikipedia, in lower case.

    Headings, lists, tables and short lines are left out; ``END`` is the end of a line.

    Args:
      path: a ``.xml.bz2`` file.
    """
    from gensim.corpora.wikicorpus import extract_pages, filter_wiki

    only_articles: Any = ("0",)  # gensim states no type
    with bz2.open(path) as dump:
        for _, text, _ in extract_pages(dump, filter_namespaces=only_articles):
            words = []
            for line in EMPTY.sub("", filter_wiki(text).lower()).splitlines():
                found = WORD.findall(line)
                if line[:1] not in "*#:;|!{=" and len(found) >= SHORTEST_LINE:
                    words += [*found, END]
            if words and text[:9].upper() != "#REDIRECT":
                yield words
