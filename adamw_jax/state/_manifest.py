"""The manifest of a checkpoint: what its arrays are, and values small enough for JSON."""

from __future__ import annotations

import base64
import hashlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamw_jax._core.numerics import named_leaves
from adamw_jax._core.passes import Recipe
from adamw_jax._core.stage import Kind

FORMAT = 1
Table = dict[str, dict[str, Any]]


def manifest(
    step: int,
    tx: optax.GradientTransformation,
    stages: list[list[str]],
    table: Table,
    **small: Any,
) -> Any:
    """Return what ``manifest.json`` holds."""
    return {
        "format": FORMAT,
        "versions": {"adamw_jax": version(), "jax": jax.__version__},
        "recipe": repr(tx),
        "stages": stages,
        "step": step,
        "arrays": table,
        **{name: to_json(value, name) for name, value in small.items()},
    }


def version() -> str:
    """Return the version of this library."""
    return sys.modules["adamw_jax"].__version__


def is_key(x: Any) -> bool:
    """Return whether an array consists of keys made by ``jax.random.key``."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def described(tree: Any, *, digests: bool = False) -> Table:
    """Return dtype and shape of every array by name, and the SHA-256 of its bytes."""
    table: Table = {}
    for name, x in named_leaves(tree):
        if name in table:
            raise ValueError(f"two arrays are called {name!r}: rename one of the two.")
        table[name] = {"dtype": str(x.dtype), "shape": [*x.shape]}
        if digests:
            table[name]["sha256"] = digest(x)
            if is_key(x):
                table[name]["key"] = str(jax.random.key_impl(x))
    return table


def digest(x: Any) -> str | None:
    """Return the SHA-256 of the bytes of an array; None if other processes hold parts of it."""
    x = jax.random.key_data(x) if is_key(x) else x
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        return None
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        x = x.addressable_data(0)
    flat = np.ascontiguousarray(x).reshape(-1)
    return hashlib.sha256(flat.view(np.uint8).data if flat.size else b"").hexdigest()


def differences(saved: Table, wanted: Table) -> list[str]:
    """Say in what the arrays of a checkpoint differ from those of a tree."""
    found = []
    for name in dict.fromkeys([*saved, *wanted]):
        if name not in wanted:
            found.append(f"{name} is in the checkpoint only")
        elif name not in saved:
            found.append(f"{name} is not in the checkpoint")
        else:
            found += [
                f"{name} was saved with {what} {saved[name][what]} and has {wanted[name][what]} now"
                for what in ("shape", "dtype")
                if saved[name][what] != wanted[name][what]
            ]
    return found


def stages_of(recipes: Sequence[Recipe]) -> list[list[str]]:
    """Return for each recipe the names of its stages from moments to direction.

    They say what the arrays of a state mean, though two lists of them may have the same arrays.
    Tails, the stages of other libraries and ``nesterov`` may come and go.
    """
    return sorted(
        [
            spec.name
            for spec in recipe.specs
            if spec.gives in (Kind.MOMENTS, Kind.DIRECTION)
            and not (spec.tail or spec.foreign or spec.reads == "gradient")
        ]
        for recipe in recipes
    )


def other_stages(saved: list[list[str]], wanted: list[list[str]]) -> list[str]:
    """Say in what the stages of two optimizers differ, if both are known."""
    saved, wanted = ([names for names in each if names] for each in (saved, wanted))
    if saved == wanted or not saved or not wanted:
        return []
    return [f"it was saved by the stages {saved}, and those of tx are {wanted}"]


def to_json(value: Any, name: str) -> Any:
    """Return a value of JSON, array, key or bytes, or a tree of them, as JSON."""
    if is_key(value):
        impl = str(jax.random.key_impl(value))
        return {"key": impl, "data": to_json(jax.random.key_data(value), name)}
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        x = np.asarray(value)
        content = base64.b64encode(x.tobytes()).decode()
        return {"dtype": str(x.dtype), "shape": x.shape, "bytes": content}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"dict": {key: to_json(x, f"{name}/{key}") for key, x in value.items()}}
    if isinstance(value, list | tuple):
        return [to_json(x, f"{name}/{i}") for i, x in enumerate(value)]
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    raise TypeError(
        f"{name} must consist of JSON values, bytes, arrays and keys, in lists and in dicts with "
        f"strings as keys; got {value!r}."
    )


def from_json(value: Any) -> Any:
    """Return what ``to_json`` was given, tuples as lists, arrays as NumPy's."""
    if isinstance(value, list):
        return [from_json(x) for x in value]
    if not isinstance(value, dict):
        return value
    if "dict" in value:
        return {key: from_json(x) for key, x in value["dict"].items()}
    if "key" in value:
        return jax.random.wrap_key_data(from_json(value["data"]), impl=value["key"])
    content = base64.b64decode(value["bytes"])
    if "dtype" not in value:
        return content
    dtype = jnp.dtype(value["dtype"])
    return np.frombuffer(content, dtype).reshape(value["shape"]).copy()
