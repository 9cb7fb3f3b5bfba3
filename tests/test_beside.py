"""The pages "Coming from ..." side by side with the packages they are about (`make beside`).

Each test runs the same gradients through both, in float64. A package that is not installed skips
its tests.
"""

from __future__ import annotations

import os
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamw_jax as aj
from adamw_jax import Rule, parameter_rules
from tests.catalogue import run

os.environ.setdefault("KERAS_BACKEND", "jax")
pytestmark = pytest.mark.usefixtures("x64")

STEPS, RATE = 20, 0.05
RNG = np.random.default_rng(0)
START = {"bias": RNG.normal(size=3), "kernel": RNG.normal(size=(3, 2))}
GRADIENTS = {name: RNG.normal(size=(STEPS, *value.shape)) for name, value in START.items()}


def package(name: str) -> Any:
    """The module, or a skip that says what to do."""
    reason = f"{name.partition('.')[0]} is not installed: `make beside` installs it"
    return pytest.importorskip(name, reason=reason)


def ours(tx: Any) -> Any:
    """Parameters and state after all gradients."""
    return run(tx, jax.tree.map(jnp.asarray, START), jax.tree.map(jnp.asarray, GRADIENTS))


def torch_run(make: Any, scheduler: Any = None, before: Any = None, after: Any = None) -> Any:
    """Parameters of a module after all gradients; hooks are called around each step."""
    torch = package("torch")
    module = torch.nn.ParameterDict({k: torch.tensor(v) for k, v in START.items()})
    optimizer = make(module)
    changes = None if scheduler is None else scheduler(optimizer)
    for step in range(STEPS):
        for name, p in module.items():
            p.grad = torch.tensor(GRADIENTS[name][step])
        if before is not None:
            before(module)
        optimizer.step()
        if after is not None:
            after(module, step)
        if changes is not None and step < STEPS - 1:
            changes.step()
    return {name: p.detach().numpy() for name, p in module.items()}


def same(got: Any, expected: Any, rtol: float = 1e-9) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=rtol, atol=1e-12, err_msg=name)


TORCH: dict[str, tuple[str, dict[str, Any], Any]] = {
    "Adam": ("Adam", {"weight_decay": 0.02}, lambda: aj.adam(RATE, l2=0.02)),
    "AdamW": ("AdamW", {}, lambda: aj.adamw(RATE, weight_decay=0.01)),
    "AMSGrad": ("Adam", {"amsgrad": True}, lambda: aj.adam(RATE, amsgrad=True)),
    "RAdam": (
        "RAdam",
        {"betas": (0.9, 0.9)},
        lambda: aj.radam(RATE, b2=0.9, below="momentum", eps_hat=True),
    ),
    "NAdam": ("NAdam", {}, lambda: aj.nadam(RATE)),
    "Adamax": ("Adamax", {}, lambda: aj.adamax(RATE)),
    "SGD": (
        "SGD",
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        lambda: aj.sgdw(RATE, momentum=0.9, nesterov=True, l2=0.1),
    ),
}


@pytest.mark.parametrize("name", TORCH)
def test_optimizers_of_torch(name: str) -> None:
    of_torch, options, make = TORCH[name]
    torch = package("torch")
    expected = torch_run(lambda m: getattr(torch.optim, of_torch)(m.values(), lr=RATE, **options))
    # torch.optim.NAdam keeps the product of its momenta in float32.
    same(ours(make())[0], expected, rtol=1e-7 if name == "NAdam" else 1e-9)


@pytest.mark.parametrize("momentum", [True, False])
def test_one_cycle_of_torch(momentum: bool) -> None:
    torch = package("torch")
    expected = torch_run(
        lambda m: torch.optim.AdamW(m.values(), lr=RATE),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o, RATE, total_steps=STEPS, cycle_momentum=momentum
        ),
    )
    cycled = (0.95, 0.85) if momentum else None
    tx = aj.adamw(aj.one_cycle(RATE, STEPS, "pytorch", momentum=cycled), weight_decay=0.01)
    same(ours(tx)[0], expected)


def test_groups_of_torch() -> None:
    torch = package("torch")
    expected = torch_run(
        lambda m: torch.optim.AdamW(
            [
                {"params": [m["kernel"]], "lr": 0.2, "weight_decay": 0.3},
                {"params": [m["bias"]], "weight_decay": 0.0},
            ],
            lr=RATE,
        )
    )
    rules = parameter_rules(
        {"kernel": Rule(learning_rate=0.2, weight_decay=0.3), "bias": Rule(weight_decay=0.0)}
    )
    same(ours(aj.adamw(RATE, weight_decay=0.01, rules=rules))[0], expected)


def test_clip_and_average_of_torch() -> None:
    """PyTorch adds 1e-6 to the norm by which it divides."""
    torch = package("torch")
    averaged: list[Any] = []

    def average(module: Any, step: int) -> None:
        if step == 0:
            rule = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
            averaged.append(torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=rule))
        averaged[0].update_parameters(module)

    clip = torch.nn.utils.clip_grad_norm_
    make = lambda m: torch.optim.SGD(m.values(), lr=RATE)  # noqa: E731
    expected = torch_run(make, before=lambda m: clip(m.parameters(), 1.0), after=average)
    tx = aj.compose(
        aj.clip_gradient(1.0),
        aj.sgdw(RATE, momentum=None),
        aj.average_iterates(kind="ema", decay=0.9),
    )
    got, state = ours(tx)
    same(got, expected, rtol=1e-5)
    means = {name: p.detach().numpy() for name, p in averaged[0].module.items()}
    same(aj.eval_params(state, got), means, rtol=1e-5)


TIMM: dict[str, tuple[dict[str, Any], Any]] = {
    "adamw": ({"weight_decay": 0.05}, lambda: aj.adamw(RATE, weight_decay=0.05, mask="kernel")),
    "cadamw": ({}, lambda: aj.adamw(RATE, weight_decay=None, cautious=True)),
    "lion": ({}, lambda: aj.lion(RATE, weight_decay=None)),
    "laprop": ({}, lambda: aj.laprop(RATE)),
}


@pytest.mark.parametrize("name", TIMM)
def test_optimizers_of_timm(name: str) -> None:
    optim = package("timm.optim")
    options, make = TIMM[name]
    expected = torch_run(lambda m: optim.create_optimizer_v2(m, opt=name, lr=RATE, **options))
    # timm's LaProp keeps the sum of the weights in float32.
    same(ours(make())[0], expected, rtol=1e-6 if name == "laprop" else 1e-9)


def test_nadamw_of_timm_is_another_form() -> None:
    """It divides b1 m + (1 - b1) g by 1 - b1^t, so early steps are longer."""
    optim = package("timm.optim")
    expected = torch_run(lambda m: optim.create_optimizer_v2(m, opt="nadamw", lr=RATE))
    got, _ = ours(aj.adamw(RATE, weight_decay=None, nesterov=True))
    apart = max(np.abs(got[name] - expected[name]).max() for name in START)
    assert 0.01 < apart < 0.1


def test_corrected_decay_of_timm() -> None:
    torch, optim = package("torch"), package("timm.optim")
    expected = torch_run(
        lambda m: optim.AdamWLegacy(
            m.values(), lr=RATE, weight_decay=0.1, corrected_weight_decay=True
        ),
        lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.1, total_iters=STEPS),
    )
    falling = lambda t: RATE * (1 - 0.9 * t.astype(float) / STEPS)  # noqa: E731
    tx = aj.adamw(falling, weight_decay=0.1, decay="corrected", base_learning_rate=RATE)
    same(ours(tx)[0], expected)


def test_layer_decay_of_timm() -> None:
    """The rates of a vision transformer, name by name."""
    optim, timm = package("timm.optim"), package("timm")
    model = timm.models.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=8, depth=3, num_heads=2, num_classes=2
    )
    names = {id(p): name.replace(".", "/") for name, p in model.named_parameters()}
    groups = optim.param_groups_layer_decay(model, layer_decay=0.75)
    want = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    tree = {name: jnp.zeros(()) for name in want}
    first, last = ("patch_embed/*", "pos_embed", "cls_token"), ("blocks/2/*", "norm/*")
    layers = [first, "blocks/0/*", "blocks/1/*", last]
    found = aj.direction.layer_decay(0.75, layers, tree).for_tree(tree)
    for name, scale in want.items():
        assert found[name].rules[0].learning_rate_factor == pytest.approx(scale), name


def factors(make: Any, steps: int) -> list[float]:
    """The learning rates of a scheduler of transformers at a rate of 1."""
    torch = package("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


W, N, D = 10, 100, 20
SCHEDULES: dict[str, tuple[str, dict[str, int], Any]] = {
    "cosine": (
        "get_cosine_schedule_with_warmup",
        {"num_training_steps": N},
        lambda: optax.warmup_cosine_decay_schedule(0.0, 1.0, W, N),
    ),
    "linear": (
        "get_linear_schedule_with_warmup",
        {"num_training_steps": N},
        lambda: optax.join_schedules(
            [optax.linear_schedule(0, 1, W), optax.linear_schedule(1, 0, N - W)], [W]
        ),
    ),
    "inverse_sqrt": (
        "get_inverse_sqrt_schedule",
        {},
        lambda: aj.inverse_root(1.0, W, div=1e12),
    ),
    "warmup_stable_decay": (
        "get_wsd_schedule",
        {"num_training_steps": N, "num_decay_steps": D},
        lambda: aj.wsd(1.0, N, warmup_steps=W, pct_end=D / N, shape="cosine", div=1e12),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_of_transformers(name: str) -> None:
    of_hf, options, make = SCHEDULES[name]
    optimization = package("transformers.optimization")
    theirs = factors(lambda o: getattr(optimization, of_hf)(o, W, **options), N)
    made = make()
    schedule = getattr(made, "learning_rate", made)
    np.testing.assert_allclose([float(schedule(t)) for t in range(N)], theirs, atol=1e-7)


def test_adafactor_of_transformers() -> None:
    optimization = package("transformers.optimization")
    fixed = {"lr": 1e-2, "relative_step": False, "scale_parameter": False}
    expected = torch_run(lambda m: optimization.Adafactor(m.values(), **fixed))
    tx = aj.adafactor(1e-2, multiply_by_parameter_scale=False, min_dim_size_to_factor=1)
    same(ours(tx)[0], expected, rtol=1e-6)


KERAS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "Adam": ("Adam", {}, lambda: aj.adam(RATE, eps=1e-7, eps_hat=True)),
    "AdamW": (
        "AdamW",
        {"weight_decay": 0.004},
        lambda: aj.adamw(RATE, weight_decay=0.004, eps=1e-7, eps_hat=True),
    ),
    "Adamax": ("Adamax", {}, lambda: aj.adamax(RATE, eps=1e-7, eps_inside_max=False)),
    "SGD": ("SGD", {"momentum": 0.9}, lambda: aj.sgdw(RATE)),
    "clip": (
        "SGD",
        {"global_clipnorm": 1.0},
        lambda: aj.compose(aj.clip_gradient(1.0, eps=0.0), aj.sgdw(RATE, momentum=None)),
    ),
}


@pytest.fixture
def keras() -> Any:
    """Keras in float64."""
    module = package("keras")
    before = module.config.floatx()
    module.config.set_floatx("float64")
    yield module
    module.config.set_floatx(before)


def keras_run(keras: Any, optimizer: Any) -> Any:
    """Variables after all gradients."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        held = {name: keras.Variable(value, name=name) for name, value in START.items()}
        optimizer.build([*held.values()])
        for step in range(STEPS):
            gradients = [jnp.asarray(GRADIENTS[name][step]) for name in held]
            optimizer.apply(gradients)
        after = {name: np.array(x.value) for name, x in held.items()}
        optimizer.finalize_variable_values([*held.values()])
    return types.SimpleNamespace(
        params=after, averaged={n: np.array(x.value) for n, x in held.items()}
    )


@pytest.mark.parametrize("name", KERAS)
def test_optimizers_of_keras(keras: Any, name: str) -> None:
    of_keras, options, make = KERAS[name]
    made = getattr(keras.optimizers, of_keras)(learning_rate=RATE, **options)
    same(ours(make())[0], keras_run(keras, made).params, rtol=1e-6)


def test_the_average_of_keras(keras: Any) -> None:
    made = keras.optimizers.SGD(learning_rate=RATE, use_ema=True, ema_momentum=0.9)
    found = keras_run(keras, made)
    tx = aj.compose(aj.sgdw(RATE, momentum=None), aj.average_iterates(kind="ema", decay=0.9))
    got, state = ours(tx)
    same(got, found.params, rtol=1e-6)
    same(aj.eval_params(state, got), found.averaged, rtol=1e-6)


def test_adam_and_one_cycle_of_fastai() -> None:
    """Whose momentum and rate are set before each step, as ParamScheduler does."""
    optimizer, schedule = package("fastai.optimizer"), package("fastai.callback.schedule")
    rate = schedule.combined_cos(0.25, RATE / 25, RATE, RATE / 1e5)
    momentum = schedule.combined_cos(0.25, 0.95, 0.85, 0.95)
    made: list[Any] = []

    def make(module: Any) -> Any:
        made.append(optimizer.Adam(module.values(), lr=RATE, wd=0.01))
        return made[0]

    steps = iter(range(STEPS))

    def before(module: Any) -> None:
        at = next(steps) / STEPS
        made[0].set_hypers(lr=rate(at), mom=momentum(at))

    expected = torch_run(make, before=before)
    fastai = {"b2": 0.99, "eps": 1e-5, "weight_decay": 0.01, "bias_correction": "current"}
    # fastai computes the positions in a schedule in float32.
    got = ours(aj.adamw(aj.one_cycle(RATE, STEPS, "fastai_v2"), **fastai))[0]
    same(got, expected, rtol=1e-6)


def test_the_slice_of_fastai() -> None:
    found = package("fastai.basics").even_mults(1e-5, 1e-3, 3)
    rules = aj.direction.discriminative_rates(1e-5, 1e-3, ["a", "b", "c"]).tables[0].rules
    ours = [1e-3 * rule.learning_rate_factor for rule in rules.values()]
    np.testing.assert_allclose(ours, found, rtol=1e-6)


def test_schedule_free_of_the_authors() -> None:
    package("torch")
    free, made = package("schedulefree"), []

    def make(module: Any) -> Any:
        made.append(free.AdamWScheduleFree(module.values(), lr=RATE, foreach=False))
        made[0].train()
        return made[0]

    expected = torch_run(make)
    same(ours(aj.schedule_free_adamw(RATE))[0], expected)
