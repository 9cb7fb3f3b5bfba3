"""One process of a training run: ``tests/test_processes.py`` starts them, and they fail as told.

The lab's network and data, FSDP over all devices of all processes, batches from a position, noise
from a key. At step BAD the last process gets NaN. Every fourth step is saved; a run begins where
the last checkpoint ends.
"""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import signal
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import adamw_jax as aj
from adamw_jax.lab.models import mlp
from adamw_jax.lab.tasks import get_task
from adamw_jax.state import restore_checkpoint, save_checkpoint, save_on_sigterm

BATCH, BAD = 16, 6
TASK = get_task("mnist1d")
NETWORK = mlp(TASK.features, TASK.classes, hidden=32)
RATE = optax.linear_schedule(0.01, 0.0, 100)
RECIPES = {
    "slow weights": aj.skip_bad_steps(
        aj.compose(aj.clip_gradient(0.5), aj.adamw(RATE), aj.lookahead(sync_period=3))
    ),
    "codes and averages": aj.skip_bad_steps(
        aj.compose(
            aj.clip_gradient(0.5),
            aj.adamw(RATE, storage=aj.storage.choose("8bit", min_size=256)),
            aj.average_iterates(kind="ema"),
        )
    ),
}


def loss_fn(params: Any, key: Any, x: Any, y: Any) -> Any:
    x = x + 0.1 * jax.random.normal(key, x.shape)
    logits = NETWORK.apply(params, x)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("rank", "processes", "port", "until"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--end", type=pathlib.Path)  # where the numbers at the end go
    parser.add_argument("--fault", type=lambda text: signal.Signals[text])
    parser.add_argument("--at", type=int)  # the step at which this process sends itself the fault
    parser.add_argument("--event")  # then in a save, when it does this to a file for the n-th time
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--recipe", choices=RECIPES, default="slow weights")
    return parser.parse_args()


def fail(args: argparse.Namespace) -> None:
    """Send the fault to this process, now or in a save."""
    count = 0

    def look(event: str, details: Any) -> None:
        nonlocal count
        if event == args.event and str(args.folder) in str(details[0]):
            count += 1
            if count == args.times:
                os.kill(os.getpid(), args.fault)

    if args.event:
        sys.addaudithook(look)
    else:
        os.kill(os.getpid(), args.fault)


def begin(tx: Any, folder: pathlib.Path, whole: Any, places: Any) -> tuple[Any, ...]:
    """Return step, parameters, state, key and position, of the last checkpoint if there is one."""
    if any(folder.glob("*-step*[0-9]")):
        shapes = jax.tree.map(
            lambda p, place: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=place), whole, places
        )
        last = restore_checkpoint(folder, tx, shapes)
        return last.step, last.params, last.state, last.rng, last.data["position"]
    params = jax.tree.map(global_array, whole, places)
    state = jax.jit(tx.init, out_shardings=aj.state_shardings(tx, params, places))(params)
    return 0, params, state, jax.random.key(1), 0


def global_array(whole: Any, sharding: Any) -> jax.Array:
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def train(args: argparse.Namespace) -> dict[str, Any]:
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    rows, copies = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    tx, whole = RECIPES[args.recipe], NETWORK.init(0)
    places = jax.tree.map(lambda p: copies if len(p) % mesh.size else rows, whole)
    step, params, state, key, position = begin(tx, args.folder, whole, places)
    wanted = aj.state_shardings(tx, params, places)

    def move(params: Any, state: Any, key: Any, x: Any, y: Any) -> Any:
        gradient = jax.grad(loss_fn)(params, key, x, y)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    move = jax.jit(move, donate_argnums=1, out_shardings=(places, wanted))
    with save_on_sigterm() as check:
        while step < args.until:
            if args.fault and step >= args.at:
                time.sleep(0.1)  # until all processes hear of it
            if args.fault and step == args.at:
                fail(args)
            batch = (position + np.arange(BATCH)) % len(TASK.train)
            inputs, labels = TASK.train.inputs[batch], TASK.train.labels[batch]
            if step == BAD:
                inputs[-BATCH // args.processes :] = np.nan  # the rows of the last process
            key, now = jax.random.split(key)
            x, y = global_array(inputs, rows), global_array(labels, rows)
            params, state = move(params, state, np.asarray(jax.random.key_data(now)), x, y)
            step, position = step + 1, (position + BATCH) % len(TASK.train)

            run, rest = (step, tx, params, state), {"rng": key, "data": {"position": position}}
            save = functools.partial(save_checkpoint, args.folder, *run, **rest)

            if step % 4 == 0:
                save()
            check(step, save)
    print({name: int(n) for name, n in aj.update.read_skips(state).items() if n}, flush=True)
    whole = multihost_utils.process_allgather((params, state), tiled=True)
    return {str(i): np.asarray(x) for i, x in enumerate(jax.tree.leaves(whole))}


def main() -> None:
    args = arguments()
    if args.processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{args.port}", args.processes, args.rank)
    numbers = train(args)
    if args.end and args.rank == 0:
        np.savez(args.end, **numbers)


if __name__ == "__main__":
    main()
