"""The runner trains what a plain loop would train, however it batches the work."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adamw_jax import adamw
from adamw_jax.lab.models import mlp
from adamw_jax.lab.progress import Silent
from adamw_jax.lab.recipes import ADAM, Arm, Recipe, settings, tables
from adamw_jax.lab.tasks import get_task
from adamw_jax.lab.train import METRICS, Plan, Runner, order_of

pytestmark = pytest.mark.quick

PLAN = Plan(seeds=(0, 1), steps=12, points=2)


def arm(rate=0.01, decay=0.1, schedule="one_cycle", l2=0.0):
    return Arm("adam", ADAM, schedule, rate, settings(b2=0.99, l2=l2, weight_decay=decay))


@pytest.fixture(scope="module")
def runner():
    return Runner(Silent())


def plain_loop(arm_, seed, plan):
    """The same training in Python, one step at a time, with optax's own loop."""
    task = get_task("digits")
    network = mlp(task.features, task.classes)
    rates, momenta = tables(arm_.schedule, arm_.learning_rate, plan.steps)
    params = jax.tree.map(jnp.asarray, network.init(seed))
    tx = adamw(
        lambda count: jnp.asarray(rates)[count], b1=lambda count: jnp.asarray(momenta)[count],
        **dict(arm_.settings),
    )  # fmt: skip
    state = tx.init(params)

    @jax.jit
    def step(params, state, x, y):
        def loss_of(params):
            logits = network.apply(params, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        loss, gradient = jax.value_and_grad(loss_of)(params)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    losses = []
    for batch in order_of(len(task.train), seed, plan.steps, plan.batch_size):
        x, y = jnp.asarray(task.train.inputs[batch]), jnp.asarray(task.train.labels[batch])
        params, state, loss = step(params, state, x, y)
        losses.append(float(loss))
    logits = np.asarray(network.apply(params, jnp.asarray(task.test.inputs)))
    return losses, float(np.mean(logits.argmax(-1) == task.test.labels))


def test_equals_a_plain_loop(runner):
    chosen = arm()
    rows = runner.train("digits", [chosen, arm(0.003)], PLAN)
    losses, accuracy = plain_loop(chosen, 1, PLAN)
    mine = [row for row in rows if row["arm"] == chosen.name and row["seed"] == 1]
    assert [row["step"] for row in mine] == [6, 12]
    np.testing.assert_allclose([r["train_loss"] for r in mine], np.reshape(losses, (2, 6)).mean(1),
                               rtol=1e-4)  # fmt: skip
    assert mine[-1]["test_accuracy"] == pytest.approx(accuracy, abs=0.006)


def test_the_step_is_told_the_losses(runner):
    """The mean loss, and the mean of the examples' squares, which differs from its square."""

    def update(updates, state, params, *, value, value_sq_mean, **others):
        spread = jnp.where(value_sq_mean > value**2, 1.0, jnp.nan)
        return jax.tree.map(lambda g: -0.1 * spread * g, updates), state

    told = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    recipe = Recipe("told", lambda carrier, numbers: told)
    rows = runner.train("digits", [Arm("told", recipe, "constant", 0.1)], PLAN)
    assert rows[-1]["train_loss"] is not None
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


def test_company_does_not_matter(runner):
    """An arm gives the same numbers alone, in a full chunk and as the rest of one."""
    many = [arm(rate) for rate in (0.001, 0.002, 0.004, 0.008, 0.016)]
    together = runner.train("digits", many, PLAN)
    lonely = Runner(Silent(), workers=1)
    for chosen in (many[0], many[-1]):
        alone = lonely.train("digits", [chosen], PLAN)
        same = [row for row in together if row["arm"] == chosen.name]
        for mine, theirs in zip(alone, same, strict=True):
            assert mine["seed"] == theirs["seed"]
            np.testing.assert_allclose([mine[k] for k in METRICS], [theirs[k] for k in METRICS],
                                       rtol=2e-3, atol=3e-3)  # fmt: skip


def test_nothing_is_trained_twice(runner):
    first = runner.train("digits", [arm(0.005), arm(0.006)], PLAN)[:4]

    class Loud(Silent):
        def begin(self, title, total):
            raise AssertionError("this was trained before")

    quiet, runner.progress = runner.progress, Loud()
    try:
        renamed = Arm("again", ADAM, "one_cycle", 0.005, arm(0.005).settings)
        second = runner.train("digits", [renamed], PLAN)
    finally:
        runner.progress = quiet
    assert [row["test_loss"] for row in first] == [row["test_loss"] for row in second]
    assert {row["group"] for row in second} == {"again"}


def test_progress_counts_every_step(runner):
    class Counting(Silent):
        total = done = 0

        def begin(self, title, total):
            self.total += total

        def advance(self, steps, message):
            assert "loss" in message
            self.done += steps

    quiet, runner.progress = runner.progress, (counting := Counting())
    try:
        runner.train("digits", [arm(r) for r in (0.011, 0.022, 0.033)], PLAN)
    finally:
        runner.progress = quiet
    assert counting.total == counting.done == 3 * 2 * PLAN.steps


def test_a_diverged_run_is_recorded_as_such(runner):
    sane = arm(0.01, decay=1.0, schedule="constant")
    rows = runner.train("digits", [sane, arm(1e12, decay=1.0, schedule="constant")], PLAN)
    assert rows[-1]["test_loss"] is None or rows[-1]["test_loss"] > 1e3
    assert 0 <= rows[-1]["test_accuracy"] <= 1


def testorder_of_is_a_permutation_every_epoch():
    order = order_of(1000, seed=7, steps=25, batch_size=100)
    assert sorted(order[:10].ravel()) == list(range(1000))
    assert sorted(order[10:20].ravel()) == list(range(1000))
    assert not np.array_equal(order[:10], order[10:20])
    np.testing.assert_array_equal(order, order_of(1000, 7, 25, 100))


def test_one_seed_means_the_same_weights():
    first, again = mlp(8, 3).init(5), mlp(8, 3).init(5)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert first["first"]["kernel"].std() == pytest.approx(np.sqrt(2 / 8), rel=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": ()}, "at least one"),
        ({"seeds": (1, 1)}, "different"),
        ({"steps": 13}, r"got 13; try 12"),
        ({"steps": 0}, "positive multiple"),
        ({"points": 0}, "positive multiple"),
    ],
)
def test_bad_plans(change, message):
    fields = {"seeds": (0, 1), "steps": 12, "points": 2} | change
    with pytest.raises(ValueError, match=message):
        Plan(**fields)


def test_unknown_schedule_names_the_choices():
    with pytest.raises(ValueError, match=r"choose from one_cycle, article, .*, constant, cosine"):
        tables("onecycle", 0.1, 100)
