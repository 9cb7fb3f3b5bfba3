"""``compare``: the protocol, what it says, and that lanes and layouts do not change the numbers."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamw_jax as aj
from adamw_jax.lab import (
    Budget,
    Data,
    Optimizer,
    Task,
    compare,
    log_uniform,
    lr_find,
    split,
    tensorboard,
)
from adamw_jax.lab.comparison import Comparison
from adamw_jax.lab.contenders import contender
from adamw_jax.lab.progress import Silent
from adamw_jax.lab.recipes import Carrier
from adamw_jax.lab.report import build
from adamw_jax.lab.settings import Settings
from adamw_jax.lab.spaces import trials

pytestmark = pytest.mark.quick

RNG = np.random.default_rng(0)
X = RNG.standard_normal((120, 3)).astype(np.float32)
Y = (X @ np.array([1.0, -2.0, 0.5]) + 0.1 * RNG.standard_normal(120)).astype(np.float32)
BUDGET = Budget(steps=12, trials=4, tuning_seeds=2, evaluations=3)


def init(key):
    return {"w": 0.1 * jax.random.normal(key, (3,)), "b": jnp.zeros(())}


def loss(params, batch):
    return (batch[0] @ params["w"] + params["b"] - batch[1]) ** 2


def line(**changes):
    return Task(**({"init": init, "loss": loss, "data": split((X, Y), batch_size=16)} | changes))


@functools.cache
def found_once():
    return compare(line(), ["adamw", "sgdw"], budget=BUDGET, seeds=5)


@pytest.fixture
def found(compilation):
    """One comparison for all tests, compiled like theirs, so that equal programs round alike."""
    return found_once()


def test_every_optimizer_gets_the_same_budget_and_fresh_seeds(found):
    runs = {key[:2]: set() for key in found.runs}
    for stage, name, trial, seed in found.runs:
        runs[stage, name].add((trial, seed))
    for name in ("adamw", "sgdw"):
        assert runs["tune", name] == {(t, s) for t in range(4) for s in range(2)}
        (trial,) = {trial for trial, _ in runs["confirm", name]}
        assert trial == found.chosen(name)[0]
        assert {seed for _, seed in runs["confirm", name]} == set(range(1000, 1005))
    assert len(found.rows) == 2 * (8 + 5) * 3
    assert {row["step"] for row in found.rows} == {4, 8, 12}


@pytest.mark.parametrize("name", aj.list_optimizers())
def test_every_optimizer_takes_part_under_a_schedule_of_the_momentum(name):
    one = contender(name)
    carrier = Carrier(jnp.full(3, 0.1), jnp.full(3, 0.9))
    numbers = trials(one.space, 2, seed=0)[0]
    assert one.recipe.build(carrier, numbers).init({"w": jnp.zeros(3)})


def test_a_run_is_the_plain_loop(found):
    row = next(r for r in found.rows if r["stage"] == "confirm" and r["optimizer"] == "adamw")
    steps, task = 12, line()
    peak, warm = row["learning_rate"], 1
    rates = [peak] + [peak * 0.5 * (1 + math.cos(math.pi * i / (steps - warm))) for i in range(11)]
    tx = aj.adamw(lambda count: jnp.asarray(rates, jnp.float32)[count],
                  weight_decay=row["weight_decay"])  # fmt: skip
    params, order = init(jax.random.key(row["seed"])), np.random.default_rng([row["seed"], 72])
    state = tx.init(params)
    epochs = np.concatenate([order.permutation(72)[:64] for _ in range(3)]).reshape(-1, 16)
    for part in epochs[:steps]:
        batch = jax.tree.map(lambda a, part=part: jnp.asarray(a[part]), task.data.train)
        slope = jax.grad(lambda p, b: loss(p, b).mean())(params, batch)
        updates, state = tx.update(slope, state, params)
        params = optax.apply_updates(params, updates)
    last = [r for r in found.rows if (r["stage"], r["optimizer"], r["seed"]) ==
            ("confirm", "adamw", row["seed"])][-1]  # fmt: skip
    assert last["test_loss"] == pytest.approx(float(loss(params, task.data.test).mean()), rel=1e-4)


def plain(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def close(a, b, rtol=2e-4):
    assert len(a) == len(b)
    for mine, theirs in zip(a, b, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            if isinstance(value, float):
                assert value == pytest.approx(theirs[key], rel=rtol, abs=1e-6), key
            else:
                assert value == theirs[key]


def test_lanes_do_not_change_the_numbers(found):
    alone = compare(line(lanes=1), ["adamw", "sgdw"], budget=BUDGET, seeds=5)
    close(plain(alone.rows), plain(found.rows))
    again = compare(line(), ["adamw", "sgdw"], budget=BUDGET, seeds=5)
    assert plain(again.rows) == plain(found.rows)  # bitwise


def test_what_cannot_be_vectorized_or_traced_runs_one_by_one(found):
    def alone(params, batch):
        values = loss(params, batch)
        fixed = jax.lax.stop_gradient(values)  # the callback below has no rule for vmap
        shape = jax.ShapeDtypeStruct((), "float32")
        return values + jax.pure_callback(lambda x: np.zeros((), np.float32), shape, fixed)

    def branching(learning_rate, weight_decay):
        if weight_decay < 0:  # a Python number, not a tracer
            raise AssertionError
        return aj.adamw(learning_rate, weight_decay=weight_decay)

    optimizers = {"adamw": branching, "sgdw": "sgdw"}
    other = compare(line(loss=alone), optimizers, budget=BUDGET, seeds=5,
                    space={"learning_rate": [0.1], "weight_decay": [0.01, 0.1]})  # fmt: skip
    same = compare(line(), ["adamw", "sgdw"], budget=BUDGET, seeds=5,
                   space={"learning_rate": [0.1], "weight_decay": [0.01, 0.1]})  # fmt: skip
    close(plain(other.rows), plain(same.rows))


def test_a_fault_of_the_user_is_shown_as_it_is():
    def wrong(params, batch):
        return params["no such weight"]

    with pytest.raises(KeyError, match="no such weight"):
        compare(line(loss=wrong), ["adamw", "sgdw"], budget=2, seeds=2)

    def broken(learning_rate):
        raise RuntimeError("my own fault")

    with pytest.raises(RuntimeError, match="my own fault"):
        compare(line(), ["adamw", broken], budget=2, seeds=2)


def test_contexts_of_jax_reach_the_programs():
    seen = []

    def watched(params, batch):
        seen.append(params["w"].dtype)
        return loss(params, batch)

    def wide(key):
        return jax.tree.map(lambda a: a.astype("float64"), init(key))

    x, y = X.astype(np.float64), Y.astype(np.float64)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # optax promotes
        task = line(init=wide, loss=watched, data=split((x, y), batch_size=16))
        found = compare(task, [optax.adam, optax.lion], budget=Budget(4, 2, 1, 1), seeds=2)
    assert set(seen) == {np.dtype("float64")}
    assert {line["optimizer"] for line in found.ranking()} == {"optax.adam", "optax.lion"}


def batches(seed):
    rng = np.random.default_rng(seed)
    while True:
        part = rng.integers(0, 72, 16)
        yield X[part], Y[part]


HELD_OUT = ((X[72:96], Y[72:96]), (X[96:], Y[96:]))


@pytest.mark.parametrize("kind", ["function", "list", "iterator"])
def test_data_may_be_batches(kind):
    made = [batch for batch, _ in zip(batches(3), range(5), strict=False)]
    sources = {"function": batches, "list": made, "iterator": iter(made)}
    data = Data(sources[kind], [HELD_OUT[0]], HELD_OUT[1])
    rows = compare(line(data=data), ["adamw", "sgdw"], budget=BUDGET, seeds=3).rows
    assert all(math.isfinite(row["test_loss"]) for row in rows)
    assert "epoch" not in rows[0]
    first = {row["seed"]: row["train_loss"] for row in rows if row["stage"] == "confirm"}
    assert len(set(first.values())) == 3
    if kind == "iterator":  # the same as its list, which every run reads from its start
        data = Data(made, *HELD_OUT)
        again = compare(line(data=data), ["adamw", "sgdw"], budget=BUDGET, seeds=3).rows
        assert plain(again) == plain(rows)


def test_keys_state_and_metrics_reach_the_users_functions():
    def start(key):
        return init(key), {"seen": jnp.zeros((), jnp.int32), "noise": jnp.zeros(())}

    def noisy(params, state, batch, key):
        noise = jax.random.normal(key)
        return loss(params, batch), {"seen": state["seen"] + 1, "noise": noise}

    def evaluate(params, state, batch):
        return {
            "seen_loss": state["seen"],
            "noise_loss": state["noise"],
            "loss": loss(params, batch),
        }

    task = line(init=start, loss=noisy, evaluate=evaluate, stateful=True)
    rows = compare(task, ["adamw", "sgdw"], budget=BUDGET, seeds=3).rows
    assert all(row["validation_seen_loss"] == row["step"] for row in rows)
    noise = {(row["seed"], row["step"]): row["test_noise_loss"] for row in rows}
    assert len(set(noise.values())) == len(noise)  # another key in every step and seed


def test_ranking_and_verdicts(found):
    ranking = found.ranking()
    assert [line["rank"] for line in ranking] == sorted(line["rank"] for line in ranking)
    by_name = {line["optimizer"]: line for line in ranking}
    assert "word" not in by_name["adamw"]
    final = {name: np.array(list(found.final(name).values())) for name in by_name}
    difference = final["adamw"] - final["sgdw"]  # a lower loss is better
    assert by_name["sgdw"]["difference"] == pytest.approx(difference.mean())
    assert by_name["sgdw"]["low"] < difference.mean() < by_name["sgdw"]["high"]
    assert by_name["sgdw"]["trials"] == 4
    (verdict,) = found.result().verdicts
    assert verdict.word == by_name["sgdw"]["word"]
    assert "5 fresh seeds" in verdict.rule
    assert "in 4 of 5 cases" in verdict.evidence


def made_up(values, validation=None, steps=10, **settings):
    """A comparison with these final values by optimizer, and validation values of two trials."""
    rows = []
    for name, own in values.items():
        for trial, base in enumerate((validation or {}).get(name, (0.5, 0.4))):
            for seed in (0, 1):
                rows.append(
                    {
                        "stage": "tune",
                        "optimizer": name,
                        "trial": trial,
                        "seed": seed,
                        "learning_rate": 0.1 * (trial + 1),
                        "step": steps,
                        "train_loss": 0.1,
                        "seconds": 1.0,
                        "validation_accuracy": base,
                        "test_accuracy": 0.0,
                    }
                )
        for seed, value in enumerate(own):
            for step in (steps // 2, steps):
                rows.append({"stage": "confirm", "optimizer": name, "trial": 0, "seed": 1000 + seed,
                             "learning_rate": 0.1, "step": step, "seconds": step / 10,
                             "train_loss": None if value is None else 0.1,
                             "validation_accuracy": value and value * step / steps,
                             "test_accuracy": value})  # fmt: skip
    count = len(next(iter(values.values())))
    s = Settings(optimizers=tuple(values), spaces=("a",) * len(values), steps=steps, seeds=count)
    return Comparison(dataclasses.replace(s, **settings), rows)


NOISE = np.array([0.01, -0.01, 0.005, -0.005, 0.0, 0.008, -0.008, 0.0])


def test_words_against_the_baseline():
    values = {"base": 0.8 + NOISE, "better": 0.85 + NOISE[::-1], "same": 0.8 + NOISE[::-1] / 3,
              "worse": 0.7 + NOISE[::-1], "lost": [None] + [0.9] * 7}  # fmt: skip
    c = made_up({k: [None if x is None else float(x) for x in v] for k, v in values.items()})
    lines = {line["optimizer"]: line for line in c.ranking()}
    assert {name: line.get("word") for name, line in lines.items()} == {
        "base": None, "better": "shown", "same": "equivalent", "worse": "contradicted",
        "lost": "does not apply",
    }  # fmt: skip
    assert c.ranking()[0]["optimizer"] == "better"
    assert [lines[name]["rank"] for name in ("better", "base", "same", "worse", "lost")] == [
        1, 2, 2, 4, 5]  # fmt: skip
    assert lines["lost"]["diverged"] == 1
    text = " ".join(c.result().remarks)
    assert "lost: 0 of 4 tuning runs and 1 of 8 confirming runs diverged" in text


def test_choosing_counts_diverged_runs_first_and_never_looks_at_test_data():
    nothing = float("nan")
    c = made_up({"a": [0.5] * 3, "b": [0.5] * 3}, {"a": (0.4, 0.6, 0.5, 0.45), "b": (nothing, 0.1)})
    for row in c.rows:
        if row["optimizer"] == "a" and row["stage"] == "tune" and row["trial"] == 3:
            row["test_accuracy"] = 1.0
    assert c.chosen("a") == (1, {"learning_rate": 0.2})
    assert c.chosen("b") == (1, {"learning_rate": 0.2})
    lower = made_up({"a": [0.5] * 3, "b": [0.5] * 3}, {"a": (0.4, 0.6)}, higher_is_better=False)
    assert lower.chosen("a")[0] == 0


def test_steps_to_the_target():
    values = {"fast": [0.8] * 4, "slow": [0.3] * 4}
    c = made_up(values, target=0.4)
    lines = {line["optimizer"]: line for line in c.ranking()}
    assert (lines["fast"]["steps"], lines["fast"]["seconds"], lines["fast"]["reached"]) == (
        5,
        0.5,
        1,
    )
    assert (lines["slow"]["steps"], lines["slow"]["reached"]) == (None, 0)
    assert made_up(values).target == pytest.approx(
        0.5 - 0.01
    )  # the baseline's best, less the margin


def test_an_edge_is_said_and_extended():
    data = split((X, Y), batch_size=16)
    space = {"learning_rate": [1e-5, 2e-5, 4e-5, 8e-5], "weight_decay": None}
    c = compare(line(data=data), ["adamw", "adam"], budget=BUDGET, seeds=2, space=space)
    assert c.at_edge() == {"adamw": {"learning_rate": True}, "adam": {"learning_rate": True}}
    assert any("lr 8e-05 is the largest" in remark for remark in c.result().remarks)
    wider = compare(
        line(data=data), ["adamw", "adam"], budget=BUDGET, seeds=2, space=space, extend=2
    )
    rates = [numbers["learning_rate"] for numbers, _ in wider.trials("adamw").values()]
    assert rates == [1e-5, 2e-5, 4e-5, 8e-5, 1.6e-4, 3.2e-4]
    assert wider.ranking()[0]["trials"] == 6


def test_files_are_live_and_an_interrupted_run_is_continued(tmp_path, found):
    class Interrupting(Silent):
        steps = 0

        def advance(self, steps, message):
            self.steps += steps
            if self.steps > 40 * 4:
                raise KeyboardInterrupt

    out, seen = tmp_path / "results", []
    with pytest.raises(KeyboardInterrupt, match="finished runs are kept in"):
        compare(line(), ["adamw", "sgdw"], budget=BUDGET, seeds=5, out=out, on_rows=seen.extend,
                progress=Interrupting())  # fmt: skip
    live = [json.loads(text) for text in (out / "logs" / "compare.jsonl").read_text().splitlines()]
    assert live == seen
    assert 0 < len(live) < len(found.rows)
    assert (out / "logs" / "compare.csv").read_text().count("\n") == len(live) + 1
    half = json.dumps(
        next(
            row
            for row in found.rows
            if not any(
                all(row[k] == old[k] for k in ("stage", "optimizer", "trial", "seed"))
                for old in live
            )
        )
    )
    with open(out / "logs" / "compare.jsonl", "a", encoding="utf-8") as file:
        file.write(f'{half}\n{{"task": "li')  # half a run, and half a row
    partial = build(out)  # what is there can be shown
    assert "Not finished" in " ".join(partial.sections[0].result.remarks)
    with pytest.raises(ValueError, match=r"other settings \(seeds 5 there, 6 now\)"):
        compare(line(), ["adamw", "sgdw"], budget=BUDGET, seeds=6, out=out, resume=True)
    again = compare(line(), ["adamw", "sgdw"], budget=BUDGET, seeds=5, out=out, resume=True)
    assert plain(again.rows) == plain(found.rows)
    old = {
        (r["optimizer"], r["seed"], r["step"], r["stage"], r["trial"]): r["seconds"] for r in live
    }
    new = {
        (r["optimizer"], r["seed"], r["step"], r["stage"], r["trial"]): r["seconds"]
        for r in again.rows
    }
    assert all(new[key] == seconds for key, seconds in old.items())  # they were not run again
    assert (out / "report.html").stat().st_size > 10_000


def test_a_comparison_shows_itself(found, tmp_path):
    assert "| 1 |" in repr(found)
    page = found._repr_html_()
    assert "<table" in page
    assert "data:image/png;base64," in page
    assert [ax.get_title(loc="left") for ax in found.plot().axes] == [
        "Every trial", "The chosen settings", "Seed by seed"]  # fmt: skip
    report = found.report(tmp_path / "report")
    assert report == tmp_path / "report" / "report.html"
    assert build(tmp_path / "report").verdicts == list(found.result().verdicts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 0}, "steps must be a whole number >= 1, got 0"),
        ({"seeds": 1}, "seeds must be between 2"),
        ({"margin": -1.0}, "margin must be a number >= 0"),
        ({"extend": -1}, "extend must be 0 or more"),
        ({"schedule": "linear"}, "unknown schedule 'linear'"),
        ({"metric": "accuracy"}, "unknown metric 'accuracy'; choose from loss"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        compare(line(), ["adamw", "sgdw"], **({"budget": 4, "seeds": 2} | change))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: split((X, Y[:5])), "same number of examples"),
        (lambda: split((X, Y), test=0.9), "sum below 1"),
        (lambda: Data((X, Y), (X, Y), batch_size=500), "between 1 and the 120 training examples"),
        (lambda: Data(3, (X, Y)), "train must be a tuple or dict of arrays"),
        (lambda: Data((X, Y), []), "validation must have at least one batch"),
        (lambda: Data((X, Y), 3), "validation must be a tuple or dict"),
        (lambda: line(init=3), "init must be a function, got 3"),
        (lambda: line(data=(X, Y)), "data must be a Data"),
        (lambda: line(lanes=0), "lanes must be 1 or more"),
        (lambda: line(stateful=True).start(jax.random.key(0)), r"must return \(params, state\)"),
        (lambda: line(evaluate=lambda p, b: 3).metrics(None, None, None), "must return a dict"),
        (lambda: compare(line(evaluate=lambda p, b: {"x": 1.0, "y": 1.0}), ["adamw", "sgdw"],
                         budget=2), "metric must be one of x, y"),
        (lambda: compare(line(evaluate=lambda p, b: {"x": 1.0}), ["adamw", "sgdw"], budget=2),
         "higher_is_better must be True or False for the metric 'x'"),
    ],
)  # fmt: skip
def test_bad_tasks_are_named(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_lr_find_takes_a_task_and_any_optimizer():
    for optimizer in ("adamw", optax.lion, Optimizer("koala_v", {"weight_decay": None})):
        found = lr_find(line(), optimizer, steps=40)
        assert len(found.losses) > 20
    assert set(found.suggestions) <= {"valley", "steep", "minimum", "slide"}
    with pytest.raises(ValueError, match="must take a learning rate"):
        lr_find(line(), optax.sgd(0.1))
    assert log_uniform(1, 2) == log_uniform(1, 2)


def test_event_files_hold_the_metrics_of_every_run(tmp_path, found):
    from tensorboardX.proto.event_pb2 import Event

    tensorboard(tmp_path)(found.rows)
    files = sorted(tmp_path.glob("*/*/events*"))
    assert len(files) == len(found.runs)
    (own,) = (tmp_path / "adamw" / "confirm-{}-1000".format(found.chosen("adamw")[0])).iterdir()
    data, values = own.read_bytes(), {}
    while data:
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]
        values |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    rows = found.runs["confirm", "adamw", found.chosen("adamw")[0], 1000]
    for row in rows:
        assert values["test_loss", row["step"]] == pytest.approx(row["test_loss"])
