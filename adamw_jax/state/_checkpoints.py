"""``save_checkpoint`` and ``restore_checkpoint``: a run on disk, with Orbax.

A checkpoint is a folder ``NUMBER-stepSTEP``. It holds ``arrays`` (Orbax's), ``manifest.json`` and
``files.sha256``. It gets its name when all of it is on the disk; before, the name ends with
``.partial``.

>>> import tempfile
>>> import jax.numpy as jnp
>>> from adamw_jax import adamw
>>> params, tx = {"w": jnp.ones(2)}, adamw(1e-3)
>>> with tempfile.TemporaryDirectory() as folder:
...     path = save_checkpoint(folder, 3, tx, params, tx.init(params), data={"epoch": 1})
...     restored = restore_checkpoint(folder, tx, params)
>>> path.name, restored.step, restored.data, restored.params
('1-step3', 3, {'epoch': 1}, {'w': Array([1., 1.], dtype=float32)})
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, Sharding

from adamw_jax._core.checks import whole_number
from adamw_jax._core.numerics import as_arrays, boxed_as, named_leaves, unbox
from adamw_jax._core.passes import recipes_started
from adamw_jax._core.stage import transformation
from adamw_jax.state import _manifest
from adamw_jax.state._folder import alone, chosen, remove_old, write
from adamw_jax.state._migrate import MigrationReport, migrate_state
from adamw_jax.state._sealed import check_seal
from adamw_jax.state._shardings import state_shardings

Tree = Any


class Checkpoint(NamedTuple):
    """What ``restore_checkpoint`` returns.

    Attributes:
      step: the step that ``save_checkpoint`` was given.
      params: the parameters, in the boxes of Flax if those that were given are.
      state: the state of the optimizer, without boxes.
      rng: the keys, as they were given; arrays are NumPy's, tuples are lists.
      data: the position in the data, likewise.
      recipe: the ``repr`` of the recipe that was saved.
      report: what ``migrate_state`` did, or None.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> import tempfile
      >>> params, tx = {"w": jnp.ones(3)}, aj.adamw(1e-3)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = aj.state.save_checkpoint(folder, 100, tx, params, tx.init(params))
      ...     back = aj.state.restore_checkpoint(folder, tx, params)
      >>> back.step, back.report
      (100, None)
    """

    step: int
    params: Tree
    state: Tree
    rng: Any
    data: Any
    recipe: str
    report: MigrationReport | None


def save_checkpoint(
    folder: str | os.PathLike[str],
    step: int,
    tx: optax.GradientTransformation,
    params: Tree,
    state: Tree,
    *,
    rng: Any = None,
    data: Any = None,
    keep: int = 2,
) -> Path:
    """Save a run, and remove checkpoints that are older than the last ``keep``.

    Nothing that exists is touched until the new checkpoint is whole, so a kill at any point leaves
    the last one. With several processes all call it, with one folder that all of them see.

    Args:
      folder: where the checkpoints of this run are; made if it does not exist.
      step: number of steps so far, at least 0.
      tx: the optimizer; its ``repr`` is put into the manifest.
      params: the parameters.
      state: the state of ``tx``.
      rng: keys of ``jax.random``, or None. Like ``data`` it can be a value of JSON, bytes, an array
        or a key, or lists and dicts of them. It is small, and equal in all processes.
      data: the position in the data, such as an index or what an iterator's ``get_state`` gives.
      keep: number of checkpoints to keep, at least 1.

    Returns:
      The folder of the checkpoint.

    Raises:
      ImportError: Orbax is not installed.
      OSError: it could not be written, or another run is saving to ``folder``; earlier checkpoints
        are as they were.
      TypeError: ``rng`` or ``data`` holds something else.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> import tempfile
      >>> params = {"w": jnp.ones(3)}
      >>> tx = aj.adamw(1e-3)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = aj.state.save_checkpoint(folder, 100, tx, params, tx.init(params))
      ...     back = aj.state.restore_checkpoint(folder, tx, params)
      >>> back.step
      100
    """
    orbax, root = _orbax(), Path(folder).absolute()
    step, keep = whole_number("step", step, 0), whole_number("keep", keep)
    tree = {"params": unbox(as_arrays(params)), "state": unbox(state)}
    table, (_, stages) = _manifest.described(tree, digests=True), _started(tx, tree["params"])
    about = _manifest.manifest(step, tx, stages, table, rng=rng, data=data)
    try:
        with alone(root):
            path = write(orbax, root, step, _flat(tree), json.dumps(about, indent=1))
            remove_old(root, keep)
    except Exception as error:
        raise OSError(
            f"could not save step {step} in {root}: {error}. Earlier checkpoints are as they were."
        ) from error
    return path


def restore_checkpoint(
    folder: str | os.PathLike[str],
    tx: optax.GradientTransformation,
    params: Tree,
    *,
    step: int | None = None,
    saved_by: Any = None,
    shardings: Any = None,
    thaw: bool = False,
) -> Checkpoint:
    """Restore the last checkpoint of a run, or that of ``step``.

    Every file is compared with its SHA-256 before anything is read from it, and every array
    afterwards, unless it is spread over processes. No dtype is cast. The stages from moments to
    direction must be those that were saved, whatever their hyperparameters.

    Args:
      folder: what ``save_checkpoint`` was given.
      tx: the optimizer to continue with.
      params: parameters with the shapes and dtypes that were saved, or ``ShapeDtypeStruct``
        objects. If they have a ``NamedSharding`` each, they are restored so, and by default the
        state as ``state_shardings`` says, on any number of devices and processes.
      step: which one; by default the one that was saved last.
      saved_by: if ``tx`` is an edit of the recipe that was saved: that recipe, or a state of it.
        ``migrate_state`` then carries the state over to ``tx``.
      shardings: for each array of the state that was saved its sharding, or a prefix of such a
        tree, such as one for all: for ZeRO-1, for host memory, for the memories of
        ``compressed_mean``. None: as ``params`` and ``saved_by`` say.
      thaw: see ``migrate_state``.

    Returns:
      A ``Checkpoint``.

    Raises:
      ImportError: Orbax is not installed.
      FileNotFoundError: there is no such checkpoint.
      ValueError: a file was changed, cut, added or removed, a newer version of the library wrote
        the checkpoint, an array has another name, shape or dtype, the optimizer has other stages
        from moments to direction, or ``shardings`` is no prefix of the state.
      TypeError: ``shardings`` holds something else than shardings.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> import tempfile
      >>> params = {"w": jnp.ones(3)}
      >>> tx = aj.adamw(1e-3)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = aj.state.save_checkpoint(folder, 100, tx, params, tx.init(params))
      ...     back = aj.state.restore_checkpoint(folder, tx, params)
      >>> back.step
      100
    """
    orbax, path = _orbax(), chosen(Path(folder).absolute(), step)
    check_seal(path)
    about = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    if about["format"] > _manifest.FORMAT:
        raise ValueError(
            f"{path} was written by adamw_jax {about['versions']['adamw_jax']}, whose format "
            f"{about['format']} version {_manifest.version()} cannot read: update the library."
        )
    like, stages = _wanted(tx if saved_by is None else saved_by, params, shardings)
    wrong = _manifest.differences(about["arrays"], _manifest.described(like))
    if wrong := wrong or _manifest.other_stages(about.get("stages", []), stages):
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"{path} does not fit: {'; '.join(wrong[:3])}{more}. Give params as they were "
            "saved, and cast them afterwards; if tx is an edit of the recipe that was saved, give "
            f"that one as saved_by=. It is {about['recipe']}."
        )
    tree = _read(orbax, path, like, about["arrays"])
    state, report = tree["state"], None
    if saved_by is not None:
        state, report = migrate_state(state, tx, tree["params"], thaw=thaw)
    rng, data = (_manifest.from_json(about[name]) for name in ("rng", "data"))
    params = boxed_as(params, tree["params"])
    return Checkpoint(about["step"], params, state, rng, data, about["recipe"], report)


def _orbax() -> Any:
    """Import Orbax, which the library needs here only."""
    try:
        import orbax.checkpoint as orbax
    except ImportError as error:
        raise ImportError(
            "checkpoints need Orbax, which is not installed: pip install 'adamw-jax[checkpoints]'."
        ) from error
    return orbax


def _flat(tree: Tree) -> dict[str, Any]:
    """Return what Orbax writes: arrays by name, keys as numbers, without empty arrays."""
    return {
        name: jax.random.key_data(x) if _manifest.is_key(x) else x
        for name, x in named_leaves(tree)
        if x.size
    }


def _wanted(by: Any, params: Tree, shardings: Any) -> tuple[Tree, list[list[str]]]:
    """Return shape, dtype and, if it has one, sharding of every array of parameters and state.

    The names are those of the stages of ``by``, if it is an optimizer.
    """
    given = unbox(as_arrays(params))
    params, stages = jax.tree.map(_placed, given), []
    if hasattr(by, "init"):
        state, stages = _started(by, given)
        if shardings is None:
            shardings = _as_the_params(transformation(by, "tx or saved_by"), params)
    else:
        state = jax.tree.map(_placed, by)
    if shardings is not None:
        places = _broadcast(unbox(shardings), state)
        shaped = map(_shaped, jax.tree.leaves(state), places)
        state = jax.tree.structure(state).unflatten(shaped)
    return {"params": params, "state": state}, stages


def _started(tx: Any, params: Tree) -> tuple[Tree, list[list[str]]]:
    """Return the shapes of the state of an optimizer, and the names of its stages."""
    tx = transformation(tx, "tx or saved_by")
    with recipes_started() as recipes:
        state = jax.eval_shape(
            lambda params: tx.init(params), params
        )  # a new function: no trace is reused
    return state, _manifest.stages_of(recipes)


def _as_the_params(tx: optax.GradientTransformation, params: Tree) -> Tree:
    """Return the shardings of the state that follow from ``params``; None if they have none."""
    places = [p.sharding for p in jax.tree.leaves(params)]
    if not places or not all(isinstance(each, NamedSharding) for each in places):
        return None
    return state_shardings(tx, params, jax.tree.structure(params).unflatten(places))


def _broadcast(shardings: Tree, state: Tree) -> list[Sharding]:
    """Return a sharding for each array of the state."""
    try:
        places = jax.tree.leaves(jax.tree.broadcast(shardings, state))
    except ValueError as error:
        raise ValueError(
            f"shardings does not fit the state that was saved: {error} Give what "
            "state_shardings(tx, params, ...) returns for the optimizer that saved it."
        ) from error
    for place in places:
        if not isinstance(place, Sharding):
            raise TypeError(f"shardings must hold shardings of jax.sharding, got {place!r}.")
    return places


def _placed(x: Any) -> jax.ShapeDtypeStruct:
    """Return shape, dtype and sharding of an array; None if JAX may still choose its device."""
    return _shaped(x, getattr(x, "sharding", None) if getattr(x, "committed", True) else None)


def _shaped(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _read(orbax: Any, path: Path, like: Tree, table: _manifest.Table) -> Tree:
    """Read the arrays, and compare them with the digests in the manifest."""
    wanted = dict(named_leaves(like))
    target: dict[str, Any] = {}
    for name, x in wanted.items():
        place = x.sharding
        if not x.size:
            continue
        x = jax.eval_shape(jax.random.key_data, x) if _manifest.is_key(x) else x
        # An array of NumPy stands for one without a place.
        target[name] = np.empty(x.shape, x.dtype) if place is None else _shaped(x, place)
    with orbax.Checkpointer(orbax.StandardCheckpointHandler()) as checkpointer:
        found = checkpointer.restore(path / "arrays", args=orbax.args.StandardRestore(target))

    def whole(name: str, x: Any) -> Any:
        if name not in found:  # an empty array
            return jnp.zeros(x.shape, x.dtype, device=x.sharding)
        array = found[name]
        now, then = _manifest.digest(array), table[name]["sha256"]
        if None not in (now, then) and now != then:
            raise ValueError(f"{path}: Orbax read other values of {name} than were saved.")
        if x.sharding is None and jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype:
            array = jnp.array(array)  # else it stays NumPy's, as float64 without x64
        kind = table[name].get("key")
        return array if kind is None else jax.random.wrap_key_data(array, impl=kind)

    return jax.tree.structure(like).unflatten(map(whole, wanted, wanted.values()))
