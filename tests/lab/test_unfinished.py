"""An interrupted run goes on inside, and ends with the rows of one that was not interrupted."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamw_jax.lab import Data, Task
from adamw_jax.lab.contenders import contender
from adamw_jax.lab.engine import Engine, Lane, Stopped
from adamw_jax.lab.unfinished import Unfinished

pytestmark = pytest.mark.quick

MARKS = (5, 10, 15, 20)
X = np.linspace(-1, 1, 40, dtype=np.float32)


def loss(params, state, batch, key):
    """A line with dropout, whose task keeps a random key of its own."""
    x, y = batch
    key = jax.random.fold_in(key, jax.random.bits(state["key"], dtype=jnp.uint32))
    kept = jax.random.bernoulli(key, 0.8, x.shape)
    new = {"key": jax.random.split(state["key"])[0], "steps": state["steps"] + 1}
    return (params["slope"] * jnp.where(kept, x, 0) - y) ** 2, new


def start(key):
    params = {"slope": jax.random.normal(key)}
    return params, {"key": jax.random.fold_in(key, 1), "steps": jnp.int32(0)}


def streamed(seed):
    order = np.random.default_rng(seed).permutation(40).reshape(5, 8)
    return [(X[i], 3 * X[i]) for i in order]


ARRAYS = Data((X, 3 * X), (X, 3 * X), batch_size=8)
STREAM = Data(streamed, (X, 3 * X))


def train(data, unfinished, say=lambda steps, metrics: None, start=start, engine=None):
    task = Task(start, loss, data, lambda p, s, b: {"loss": (p["slope"] * b[0] - b[1]) ** 2},
                stateful=True, name="line")  # fmt: skip
    engine, rates = engine or Engine(1), np.full(20, 0.05)
    engine.unfinished = unfinished
    lanes = [Lane(seed, rates, rates, {"learning_rate": 0.05}) for seed in (0, 1)]
    rows = engine.train(task, contender("adamw").recipe, lanes, MARKS, 2, say)
    return [[{**row, "seconds": 0} for row in own] for own in rows]


def stop_after(steps, seen, now, metrics):
    seen.append(now)
    if sum(seen) >= steps:
        raise KeyboardInterrupt


@pytest.mark.parametrize("data", [ARRAYS, STREAM], ids=["arrays", "stream"])
def test_it_goes_on_bitwise(tmp_path, data):
    whole, seen = train(data, None), []
    with pytest.raises(KeyboardInterrupt):
        train(data, Unfinished(tmp_path, 0), functools.partial(stop_after, 20, seen))
    assert seen == [10, 10]
    (saved,) = tmp_path.glob("unfinished/*/*")
    assert saved.name == "10"
    seen.clear()
    assert train(data, Unfinished(tmp_path), lambda steps, _: seen.append(steps)) == whole
    assert seen == [20, 10, 10]
    assert not [*tmp_path.glob("unfinished/*/*")]  # only the rows are left
    seen.clear()
    assert train(data, Unfinished(tmp_path), lambda steps, _: seen.append(steps)) == whole
    assert seen == [40]


def test_an_interrupt_saves_at_once(tmp_path):
    engine = Engine(1)
    with pytest.raises(Stopped):
        train(ARRAYS, Unfinished(tmp_path), lambda *_: engine.stop.set(), engine=engine)
    (saved,) = tmp_path.glob("unfinished/*/*")
    assert saved.name == "5"


def test_what_cannot_go_on_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(ARRAYS, Unfinished(tmp_path, 0), functools.partial(stop_after, 10, []))

    def other(key):
        return {"slope": jnp.ones((1, 1))}, start(key)[1]

    with pytest.raises(ValueError, match="model or optimizer have changed") as error:
        train(ARRAYS, Unfinished(tmp_path), start=other)
    assert re.search(r"cannot continue the run in .*unfinished.*--out", str(error.value))
    for file in tmp_path.rglob("unfinished/*/*/*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(ValueError, match="cannot continue the run in"):
        train(ARRAYS, Unfinished(tmp_path))
