"""The state of a composed recipe, and functions that find it under any wrapper."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.core
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey

from adamw_jax._core import numerics
from adamw_jax._core.checks import did_you_mean
from adamw_jax._core.declare import Domain, in_domain, real, real_number

Wanted = type | tuple[type, ...] | Callable[[Any], bool]
"""Which nodes of a state to find: those of one or several types, or those that pass a test."""


class _Names(tuple[str, ...]):
    """Names of hyperparameters in order; compared by the names alone.

    Attributes:
      domains: the declared range of each.
      injected: those whose values in the code are arrays.
    """

    domains: Mapping[str, Domain] = {}
    injected: frozenset[str] = frozenset()


def _names(domains: Mapping[str, Domain], injected: Iterable[str] = ()) -> _Names:
    names = _Names(domains)
    names.domains, names.injected = domains, frozenset(injected)
    return names


class Hyperparams(MutableMapping[str, Any], dict):  # pyright: ignore[reportGeneralTypeIssues]
    """The hyperparameters of a recipe: two arrays in the state, used as a mapping.

    ``state.hyperparams["b1"]`` is the value of the last step; assigning to it pins a new value.
    ``optax.tree.get(state, "learning_rate")`` finds it, too, unless the value in the code is an
    array. ``optax.inject_hyperparams`` gives arrays, and keeps the values in its own state.

    Attributes:
      names: the names in order.
      array: the values that the last step used, of the default float dtype, on the last axis.
      pins: whether the user pinned each; the value or schedule in the code is then not used.
    """

    __slots__ = ("array", "names", "pins")
    names: _Names
    array: Any
    pins: Any

    def __init__(
        self, domains: Mapping[str, Domain], array: Any, pins: Any, injected: Iterable[str] = ()
    ) -> None:
        self.names, self.array, self.pins = _names(domains, injected), array, pins

    @property
    def domains(self) -> Mapping[str, Domain]:
        """The declared ranges by name."""
        return self.names.domains

    def value(self, name: str) -> jax.Array:
        """Return the value of the last step."""
        return self._read(self.array, name)

    def values_by_name(self) -> dict[str, jax.Array]:
        """Return all values of the last step."""
        arrays = map(numerics.on_device, jax.tree.leaves(self.array))
        return {k: v for array in arrays for k, v in zip(self.names, _apart(array), strict=True)}

    def is_pinned(self, name: str) -> jax.Array:
        """Return whether the user pinned the value."""
        return self._read(self.pins, name)

    def check_pins(self, domains: Mapping[str, Domain]) -> None:
        """Raise if a pinned value is out of its range, for example after rounding.

        Values that are traced or on other hosts are not checked.
        """
        pins = numerics.unboxed(self.pins)
        if isinstance(pins, jax.core.Tracer) or not getattr(pins, "is_fully_addressable", True):
            return
        places = np.unique(np.nonzero(np.asarray(pins))[-1]) if self.names else ()
        for name in (self.names[i] for i in places):
            domain = domains[name]
            for value in np.asarray(self.value(name))[np.asarray(self.is_pinned(name))].ravel():
                if not domain.contains(float(value)) or (np.isinf(value) and not domain.infinite):
                    raise ValueError(
                        f"{name} is pinned to {value}, but must be {domain.words}: rounding moved "
                        "it out of its range, or the range has changed. Pin it again with "
                        "set_hyperparams, or unpin it with clear_hyperparams."
                    )

    def pinned_to(self, name: str, value: Any) -> Hyperparams:
        """Return the hyperparameters with ``name`` pinned to a value."""
        old, here = self.value(name), self._here(name)
        given = real_number(value, f"{name} must be a number, got", old.shape)
        if not isinstance(given, jax.core.Tracer):
            domain = self.domains[name]
            for one in np.ravel(given):
                in_domain(one, domain, f"{name} must be {domain.words}")
        new = jnp.asarray(given, old.dtype)[..., None]
        return self._with(
            _changed(self.array, lambda x: jnp.where(jnp.broadcast_to(here, x.shape), new, x)),
            _changed(self.pins, lambda x: x | jnp.broadcast_to(here, x.shape)),
        )

    def unpinned(self, name: str) -> Hyperparams:
        """Return the hyperparameters with ``name`` not pinned."""
        here = self._here(name)
        pins = _changed(self.pins, lambda x: x & ~jnp.broadcast_to(here, x.shape))
        return self._with(self.array, pins)

    def _with(self, array: Any, pins: Any) -> Hyperparams:
        return _made(self.names, (array, pins))

    def _read(self, array: Any, name: str) -> jax.Array:
        (whole,) = jax.tree.leaves(array)
        return numerics.on_device(whole)[..., self._place(name)]

    def _here(self, name: str) -> np.ndarray:
        return np.arange(len(self.names)) == self._place(name)

    def _place(self, name: str) -> int:
        if name not in self.names:
            raise KeyError(unknown(name, self.names))
        return self.names.index(name)

    @property
    def _marks(self) -> dict[str, Any]:
        """By key, what a tree function put in the places of the two arrays, if anything."""
        if not self.names or hasattr(self.array, "shape"):
            return {}
        return {key.name: child for key, child in _children_with_keys(self)[0]}

    def __getitem__(self, name: str) -> Any:
        marks = self._marks
        return marks[name] if marks else self.value(name)

    def __setitem__(self, name: str, value: Any) -> None:
        new = self.pinned_to(name, value)
        self.array, self.pins = new.array, new.pins

    def __ior__(self, other: Any) -> Hyperparams:  # ``dict.__ior__`` would not set anything
        self.update(other)
        return self

    def __delitem__(self, name: str) -> NoReturn:
        raise TypeError(
            "a recipe's hyperparameters cannot be deleted; unpin with clear_hyperparams."
        )

    def __contains__(self, name: object) -> bool:
        if marks := self._marks:
            return name in marks
        return name in self.names and name not in self.names.injected

    def __iter__(self) -> Iterator[str]:
        return iter(self._marks or [name for name in self.names if name in self])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Hyperparams):
            return False
        return (self.names, self.array, self.pins) == (other.names, other.array, other.pins)

    def __repr__(self) -> str:
        """Keep it short: optax quotes it in error messages."""
        names = ", ".join(self.names)
        return f"<Hyperparams {names}: read with hyperparams(state), set with set_hyperparams>"

    def __reduce__(self) -> Any:
        names = self.names
        return Hyperparams, (names.domains, self.array, self.pins, names.injected)

    def filled(self, values: Sequence[Any], pins: Sequence[Any]) -> Hyperparams:
        """Return the hyperparameters with these values and pins, in the order of the names."""
        if not self.names:
            return self
        return self._with(jnp.stack(values, -1), jnp.stack(pins, -1))

    def copy(self) -> Hyperparams:
        """Return another node with the same arrays."""
        return self._with(self.array, self.pins)


@numerics.kernel
def _apart(array: jax.Array) -> list[jax.Array]:
    return [array[..., i] for i in range(array.shape[-1])]


def _changed(array: Any, change: Callable[[jax.Array], jax.Array]) -> Any:
    """Apply an element-wise function, which keeps dtype, shape, placement, sharding and memory.

    Mapping keeps the box that Flax NNX puts around the array.
    """
    return numerics.in_memory_of(jax.tree.map(change, numerics.on_device(array)), array)


# Every jitted step calls the next two.
def _made(names: _Names, children: Any) -> Hyperparams:
    made = dict.__new__(Hyperparams)
    made.names = names
    made.array, made.pins = children or (None, None)
    return made


def _flat(node: Hyperparams) -> tuple[tuple[Any, ...], _Names]:
    names = node.names
    return ((node.array, node.pins) if names else ()), names


def _children_with_keys(node: Hyperparams) -> tuple[Any, _Names]:
    # The keys contain the names, so that a checkpoint with other names is refused.
    names = ",".join(node.names)
    keys = GetAttrKey(_VALUES + names), GetAttrKey(_PINS + names)
    return tuple(zip(keys, _flat(node)[0], strict=False)), node.names


_VALUES, _PINS = "values of ", "pins of "


def _register_with_flax() -> None:
    """Register hyperparameters with ``flax.serialization``, if it is imported."""
    flax = sys.modules.get("flax.serialization")
    if flax is None or _FLAX:
        return
    _FLAX.append(flax)

    def to_dict(node: Hyperparams) -> dict[str, Any]:
        keyed, _ = _children_with_keys(node)
        return {key.name: child for key, child in keyed}

    def from_dict(node: Hyperparams, saved: dict[str, Any]) -> Hyperparams:
        keys = [*to_dict(node)]
        if sorted(saved) != sorted(keys):
            raise ValueError(
                f"the checkpoint has {sorted(saved)}, the target {sorted(keys)}: convert the state "
                "with migrate_state(saved, tx, params)."
            )
        return _made(node.names, [saved[key] for key in keys])

    flax.register_serialization_state(Hyperparams, to_dict, from_dict)


_FLAX: list[Any] = []


jax.tree_util.register_pytree_with_keys(Hyperparams, _children_with_keys, _made, _flat)
jax.export.register_pytree_node_serialization(
    Hyperparams,
    serialized_name="adamw_jax.Hyperparams",
    serialize_auxdata=lambda names: json.dumps([*names.domains.items()]).encode(),
    deserialize_auxdata=lambda text: _names(
        {name: Domain(*ends) for name, ends in json.loads(text)}
    ),
)


class _Fields(NamedTuple):
    count: jax.Array
    hyperparams: Hyperparams
    stages: dict[str, Any]


class ComposeState(_Fields):
    """State of a composed recipe.

    Attributes:
      count: number of updates made, int32; every schedule reads it.
      hyperparams: by name, the value of the last step, which may be pinned.
      stages: by name, the states of the stages that have one.
    """

    __slots__ = ()

    @property
    def hyperparams(self) -> Hyperparams:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The hyperparameters; Flax reads this property before it serializes them."""
        _register_with_flax()
        return self[1]


def is_hyperparams(node: Any) -> bool:
    """Return whether a node is a ``Hyperparams``, or a mapping from one that lost its type."""
    if isinstance(node, Hyperparams):
        return True
    if not isinstance(node, Mapping) or not all(isinstance(key, str) for key in node):
        return False
    return sorted(key.partition(" of ")[0] + " of " for key in node) == [_PINS, _VALUES]


def hyperparams_in(node: Any) -> list[tuple[str, Any, Any]]:
    """Return name, value and pin of every hyperparameter in such a node."""
    if not isinstance(node, Hyperparams):
        by_kind = {key.partition(" of ")[0]: (key, array) for key, array in node.items()}
        names = by_kind["values"][0].removeprefix(_VALUES).split(",")
        node = Hyperparams(dict.fromkeys(names, real), by_kind["values"][1], by_kind["pins"][1])
    return [(name, node.value(name), node.is_pinned(name)) for name in node.names]


def check_hyperparams(node: Any) -> Hyperparams:
    """Return the hyperparameters of a state; raise if ``optax.tree.set`` has replaced them."""
    if isinstance(node, Hyperparams):
        return node
    raise TypeError(
        f"the hyperparameters in the state are a {type(node).__name__}, as after optax.tree.set: "
        "use adamw_jax.set_hyperparams(state, learning_rate=...) instead. Convert a checkpoint "
        "that lost its types with migrate_state(saved, tx, params)."
    )


def unknown(name: str, known: Sequence[str]) -> str:
    """Make the error text for a hyperparameter that a state does not have."""
    group, dot, _ = name.partition(".")
    hint = did_you_mean(name, known)
    if dot and not any(other.startswith(f"{group}.") for other in known):
        hint = f"; to make a group live, give its Rule name={group!r}."
    return f"unknown hyperparameter {name!r}, the state has {sorted(known)}{hint}"


def restarts(node: Any) -> bool:
    """Return whether a restart of the moments resets a node: its class has ``restarts = True``."""
    return getattr(type(node), "restarts", False) is True


def check_owners(state: Any) -> None:
    """Raise if two nodes own the same parameter, such as Lookahead and ``schedule_free``.

    ``owns`` in the class of a node names the field with its parameters.
    """
    owners: dict[str, str] = {}
    for node in jax.tree.leaves(state, is_leaf=lambda x: hasattr(type(x), "owns")):
        kind = type(node)
        if not hasattr(kind, "owns"):
            continue
        names = numerics.leaf_names(getattr(node, kind.owns))
        if both := sorted(set(names) & set(owners)):
            raise ValueError(
                f"{owners[both[0]]} and {kind.__name__} both keep weights of {both}: each would "
                "take the output of the other for its parameters. Leave one out."
            )
        owners |= dict.fromkeys(names, kind.__name__)


def nodes(state: Any, kind: Wanted) -> list[tuple[tuple[Any, ...], Any]]:
    """Find all nodes of a type in a state, also inside each other; return (path, node) pairs."""
    is_one = _test(kind)

    def inside(path: tuple[Any, ...], node: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
        def is_other(x: Any) -> bool:
            return x is not node and is_one(x)

        for rest, found in jax.tree_util.tree_leaves_with_path(node, is_leaf=is_other):
            if is_other(found):
                yield (*path, *rest), found
                yield from inside((*path, *rest), found)

    itself = [((), state)] if is_one(state) else []
    return [*itself, *inside((), state)]


def _test(kind: Wanted) -> Callable[[Any], bool]:
    if isinstance(kind, (type, tuple)):
        return lambda node: isinstance(node, kind)
    return kind


def find(state: Any, kind: Wanted) -> list[tuple[str, Any]]:
    """Find all nodes of a type in a state, each with its slash-separated path."""
    return [(numerics.leaf_name(path), node) for path, node in nodes(state, kind)]


def replace(state: Any, kind: Wanted, change: Any) -> Any:
    """Replace every node of a type by ``change(path, node)``, inner nodes first."""
    is_one = _test(kind)

    def inside(path: tuple[Any, ...], node: Any) -> Any:
        def is_other(x: Any) -> bool:
            return x is not node and is_one(x)

        def one(rest: tuple[Any, ...], found: Any) -> Any:
            return inside((*path, *rest), found) if is_other(found) else found

        new = jax.tree_util.tree_map_with_path(one, node, is_leaf=is_other)
        return change(numerics.leaf_name(path), new) if is_one(node) else new

    return inside((), state)
