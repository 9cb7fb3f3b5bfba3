"""Read seven tragedies of Shakespeare, which lie in the folder ``texts`` beside this file.

The text is in the public domain; ``texts/README.md`` says where it is from.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import re

from adamw_jax.lab.data.text import END, WORD, Text, divided

SHA256 = "135ca3e8e0539c2fbdaaeb4051036c69a017ac4d661881e998582c134c38cd0a"
SCENE = re.compile(r"^ *scene [ivxl]+\.", re.MULTILINE)


@functools.lru_cache(maxsize=2)
def plays(size: int = 2000, limit: int | None = None, held_out: int | None = None) -> Text:
    """Return the plays, of whose scenes a tenth are for validation and a tenth for the test.

    Args:
      size: words in the vocabulary.
      limit: words of the training text; None for all.
      held_out: words of each other text; None for all.
    """
    return divided(scenes(), "scenes of seven tragedies of Shakespeare", size, limit, held_out)


def scenes() -> list[list[str]]:
    """Return the words of every scene in lower case; ``END`` is the end of a speech."""
    path = importlib.resources.files("adamw_jax.lab.data") / "texts" / "tragedies.txt"
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise ValueError(f"{path} is not the text that was published; install adamw_jax again.")
    found = SCENE.split(content.decode("ascii").lower())[1:]
    return [
        [word for speech in scene.split("\n\n") if (words := WORD.findall(speech))
         for word in (*words, END)]
        for scene in found
    ]  # fmt: skip
