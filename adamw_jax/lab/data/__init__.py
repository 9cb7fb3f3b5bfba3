"""Load real data sets: from the cache folder, from packages, or from a folder of the user.

``cache.get(Remote(...))`` returns the path of a verified file, after a download if need be;
``archives.members(path, wanted)`` reads members of it. Nothing is unpacked to the disk, and no
pickle is ever loaded. Each data set also writes a synthetic twin in the same form, for tests and
trials without a download.
"""

from adamw_jax.lab.data.archives import members
from adamw_jax.lab.data.cache import Remote, folder, get, keep_off_the_network, offline
from adamw_jax.lab.data.cifar import CIFAR10, CIFAR100, Cifar
from adamw_jax.lab.data.text import Text, numbered
from adamw_jax.lab.data.wikitext import WIKITEXT2, wikitext2

REMOTE = {"cifar10": CIFAR10.remote, "cifar100": CIFAR100.remote, "wikitext2": WIKITEXT2}
"""What ``adamw-jax data`` downloads, by name."""

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "REMOTE",
    "WIKITEXT2",
    "Cifar",
    "Remote",
    "Text",
    "folder",
    "get",
    "keep_off_the_network",
    "members",
    "numbered",
    "offline",
    "wikitext2",
]
