"""Keep runs that have not ended on disk, so that an interrupted run goes on where it was."""

from __future__ import annotations

import hashlib
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamw_jax.lab.json_files import read_json, write_json

FOLDER = "unfinished"
EVERY = 30.0
"""Seconds between two saves of a program."""


class Place(NamedTuple):
    """How far a program has come: step, rows of each lane, seconds, and its arrays."""

    step: int
    rows: list[list[dict[str, Any]]]
    seconds: float
    carry: Any


class Unfinished:
    """Programs by a key, in a folder; Orbax writes their arrays.

    A program that has ended has only rows there.
    """

    def __init__(self, folder: Path, every: float = EVERY):
        """Set up.

        Args:
          folder: the folder of the results.
          every: seconds between two saves of a program.
        """
        self.folder, self.every = folder.absolute() / FOLDER, every
        self._saved: dict[str, float] = {}

    def load(self, key: Any, carry: Any) -> Place | None:
        """Return how far a program has come; None if nothing is there.

        Args:
          key: what the program is, with a ``repr`` that says all.
          carry: its arrays at the start, for structure, shapes and dtypes.
        """
        name = self._name(key)
        self._saved[name] = time.monotonic()
        if not (self.folder / f"{name}.json").exists():
            return None
        found = read_json(self.folder / f"{name}.json")
        if found["arrays"]:
            path, (leaves, structure) = (
                self.folder / name / str(found["step"]),
                jax.tree.flatten(carry),
            )
            if found["arrays"] != _described(leaves):
                raise ValueError(
                    f"cannot continue the run in {path}: model or optimizer have changed; give "
                    "another folder (--out)."
                )
            carry = structure.unflatten(map(_as, self._restored(path, leaves), leaves))
        return Place(found["step"], found["rows"], found["seconds"], carry)

    def save(self, key: Any, place: Place, *, now: bool = False, ended: bool = False) -> None:
        """Write how far a program has come, if it is time to.

        Args:
          key: what the program is.
          place: how far it has come.
          now: write in any case.
          ended: write the rows alone.
        """
        name = self._name(key)
        if not (now or ended) and time.monotonic() - self._saved[name] < self.every:
            return
        self.folder.mkdir(exist_ok=True)
        arrays = self.folder / name / str(place.step)
        if not ended:
            with _orbax().StandardCheckpointer() as checkpointer:
                checkpointer.save(arrays, _flat(jax.tree.leaves(place.carry)), force=True)
        described = [] if ended else _described(jax.tree.leaves(place.carry))
        about = {"arrays": described, **place._asdict()}
        del about["carry"]
        write_json(self.folder / f"{name}.json", about)
        for old in arrays.parent.glob("*"):
            if ended or old != arrays:
                shutil.rmtree(old)
        self._saved[name] = time.monotonic()

    def remove(self) -> None:
        """Delete the folder: everything has ended."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _restored(self, path: Path, leaves: list[Any]) -> list[Any]:
        wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), _flat(leaves))
        try:
            with _orbax().StandardCheckpointer() as checkpointer:
                found = checkpointer.restore(path, wanted)
        except Exception as error:
            raise ValueError(
                f"cannot continue the run in {path}: {str(error).splitlines()[0]}; give another "
                "folder (--out)."
            ) from error
        return [found[str(i)] for i in range(len(leaves))]

    @staticmethod
    def _name(key: Any) -> str:
        return hashlib.sha256(repr(key).encode()).hexdigest()[:16]


def _orbax() -> Any:
    import orbax.checkpoint

    return orbax.checkpoint


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _described(leaves: list[Any]) -> list[str]:
    return [f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves]


def _flat(leaves: list[Any]) -> dict[str, Any]:
    """Return what Orbax writes: arrays by number, random keys as integers."""
    return {str(i): jax.random.key_data(x) if _is_key(x) else x for i, x in enumerate(leaves)}


def _as(saved: Any, leaf: Any) -> Any:
    return (
        jax.random.wrap_key_data(saved, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else saved
    )
