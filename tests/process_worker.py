"""One process of a training run: ``tests/test_processes.py`` starts them, and they fail as told.

FSDP over all devices of all processes, batches from a position, noise from a key. Every fourth step
is saved; a run begins where the last checkpoint ends.
"""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import signal
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import adamw_jax as aj
from adamw_jax.state import restore_checkpoint, save_checkpoint, save_on_sigterm

EXAMPLES, BATCH = 64, 16
SHAPES = {"first": (8, 16), "second": (16, 4)}
TX = aj.skip_bad_steps(
    aj.compose(
        aj.clip_gradient(0.5),
        aj.adamw(optax.linear_schedule(0.05, 0.0, 100)),
        aj.lookahead(sync_period=3),
    )
)


def loss_fn(params: Any, key: Any, x: Any, y: Any) -> Any:
    x = x + 0.1 * jax.random.normal(key, x.shape)
    return jnp.mean((jnp.tanh(x @ params["first"]) @ params["second"] - y) ** 2)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("rank", "processes", "port", "until"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--end", type=pathlib.Path)  # where the numbers at the end go
    parser.add_argument("--fault", type=lambda text: signal.Signals[text])
    parser.add_argument("--at", type=int)  # the step at which this process sends itself the fault
    return parser.parse_args()


def begin(folder: pathlib.Path, rows: Any) -> tuple[Any, ...]:
    """Return step, parameters, state, key and position, of the last checkpoint if there is one."""
    shapes = {
        k: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=rows) for k, shape in SHAPES.items()
    }
    if folder.exists():
        last = restore_checkpoint(folder, TX, shapes)
        return last.step, last.params, last.state, last.rng, last.data["position"]
    rng = np.random.default_rng(0)
    params = {
        k: global_array(rng.normal(0, 0.3, shape).astype("f4"), rows) for k, shape in SHAPES.items()
    }
    state = jax.jit(TX.init, out_shardings=aj.state_shardings(TX, params, rows))(params)
    return 0, params, state, jax.random.key(1), 0


def global_array(whole: Any, sharding: Any) -> jax.Array:
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def train(args: argparse.Namespace) -> dict[str, Any]:
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, P("data"))
    step, params, state, key, position = begin(args.folder, rows)
    wanted = aj.state_shardings(TX, params, rows)
    examples = np.random.default_rng(1).normal(size=(EXAMPLES, 12)).astype("f4")

    def move(params: Any, state: Any, key: Any, x: Any, y: Any) -> Any:
        loss, gradient = jax.value_and_grad(loss_fn)(params, key, x, y)
        updates, state = TX.update(gradient, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    move = jax.jit(move, donate_argnums=1, out_shardings=(rows, wanted))
    with save_on_sigterm() as check:
        while step < args.until:
            if args.fault and step >= args.at:
                time.sleep(0.1)  # until all processes hear of it
            if args.fault and step == args.at:
                os.kill(os.getpid(), args.fault)
            batch = examples[(position + np.arange(BATCH)) % EXAMPLES]
            key, now = jax.random.split(key)
            x, y = (global_array(part, rows) for part in (batch[:, :8], batch[:, 8:]))
            params, state = move(params, state, np.asarray(jax.random.key_data(now)), x, y)
            step, position = step + 1, (position + BATCH) % EXAMPLES

            run, rest = (step, TX, params, state), {"rng": key, "data": {"position": position}}
            save = functools.partial(save_checkpoint, args.folder, *run, **rest)

            if step % 4 == 0:
                save()
            check(step, save)
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
