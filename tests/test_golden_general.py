"""The golden replay on sets that are made here: other hyperparameters than the recorded ones.

Formulas in NumPy, or optax itself, stand in for the sources.
"""

from __future__ import annotations

import functools
import inspect
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.golden_cases import Case, discover
from tests.golden_formulas import (
    FORMULAS,
    adam,
    authors_schedule,
    clipped_sgd,
    fastai1_cycle,
    fastai2_cycle,
    koala_m,
    koala_v,
    looked_ahead,
    official_radam,
    phase_cycle,
    sgd,
    torch_adam,
    torch_adamax,
    torch_adamw,
    torch_cycle,
    torch_radam,
)
from tests.golden_table import TABLE
from tests.test_golden import check

pytestmark = pytest.mark.quick

Arrays = dict[str, np.ndarray]
SHAPES: dict[str, tuple[int, ...]] = {"w": (5, 2), "b": (3,), "s": (), "t": (2, 3, 4)}
STEPS = 17


@functools.cache
def recorded_gradients() -> tuple[Arrays, Arrays]:
    """Start and gradients, of many sizes, some of them 0."""
    rng = np.random.default_rng(7)
    params = {leaf: rng.normal(size=shape) for leaf, shape in SHAPES.items()}
    gradients = {
        leaf: rng.normal(size=(STEPS, *shape)) * 10 ** rng.uniform(-2, 1, size=shape)
        for leaf, shape in SHAPES.items()
    }
    gradients["b"][:, 0] = gradients["b"][:8, 1] = gradients["w"][::4, 0] = 0.0
    return params, gradients


def trajectory(step: Any, kinds: tuple[str, ...] = ()) -> Arrays:
    """The arrays of a file: of ``step(p, g, s, t)`` and of what it keeps in the state ``s``."""
    params, gradients = recorded_gradients()
    arrays = {f"params_0_{leaf}": p for leaf, p in params.items()}
    arrays |= {f"grads_{leaf}": g for leaf, g in gradients.items()}
    for leaf, p in params.items():
        state, rows = {}, []
        for t, g in enumerate(gradients[leaf], 1):
            p = step(p, g, state, t)
            rows.append([p, *(state.get(kind, np.full(p.shape, np.nan)) for kind in kinds)])
        for kind, values in zip(("params", *kinds), zip(*rows, strict=True), strict=True):
            arrays[f"{kind}_{leaf}"] = np.stack(values)
    return arrays


def written(
    folder: Path, system: str, source: str, told: Any, arrays: Arrays, **entry: Any
) -> Case:
    """A case of a set with one file."""
    np.savez(folder / "case.npz", **arrays)
    rtol = {"suggested_rtol": 1e-8, "suggested_atol": 1e-11}
    named = {"system": system, "source_key": source, "name": "case", "file": "case.npz"}
    manifest = {"entries": [{**named, **rtol, "hyperparameters": told, **entry}]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (case,) = discover(folder)
    return case


BETAS = [0.7, 0.9]
SMALL = {"lr": 0.02, "betas": BETAS, "eps": 1e-3, "weight_decay": 0.1}
AMSGRAD = {"amsgrad": True}
KERAS = {"learning_rate": 0.02, "beta_1": 0.7, "beta_2": 0.9, "epsilon": 1e-3}
PAPER = {"alpha": 0.02, "beta1": 0.7, "lam": 0.1, "eta": 0.4}
HF = {"eps": [1e-6, 1e-2], "clip_threshold": 1.7, "decay_rate": -0.6, "beta1": 0.8}
ACPROP = {"lr": 1e-3, "betas": [0.8, 0.7], "eps": 1e-6, "weight_decay": 0.1}
NO_RECTIFIER = {"rectify": False}
FORMS: list[tuple[str, str, dict[str, Any]]] = [
    ("adam", "torch", {}),
    ("adam", "torch", {**SMALL, **AMSGRAD, "maximize": True}),
    ("adam", "torch", {**SMALL, "decoupled_weight_decay": True, "foreach": False}),
    ("adam", "fairseq", {**SMALL, **AMSGRAD}),
    ("adam", "keras", {}),
    ("adam", "keras", {**KERAS, **AMSGRAD, "weight_decay": 0.1}),
    ("adamax", "torch", {}),
    ("adamax", "torch", SMALL),
    ("adamax", "fairseq", SMALL),
    ("adamw", "torch", {}),
    ("adamw", "torch", {**SMALL, **AMSGRAD}),
    ("adamw", "fairseq", SMALL),
    ("adamwr", "paper", {**PAPER, "beta2": 0.9, "eps": 1e-3}),
    ("sgdwr", "paper", PAPER),
    ("amsgrad", "keras", {**KERAS, **AMSGRAD}),
    ("radam", "radam_official", {**SMALL, "betas": [0.7, 0.8]}),
    ("radam", "radam_official", {**SMALL, "degenerated_to_sgd": True}),
    ("radam", "torch", {"lr": 0.02}),
    ("radam", "torch", SMALL),
    ("radam", "torch", {**SMALL, "decoupled_weight_decay": True}),
    ("radam", "fastai2", {"lr": 0.02}),
    ("radam", "fastai2", {"lr": 0.02, "mom": 0.7, "wd": 0.1, "decouple_wd": False}),
    ("adafactor", "hf", {}),
    ("adafactor", "hf", {**HF, "weight_decay": 0.1}),
    ("adafactor", "hf", {**HF, "warmup_init": True, "scale_parameter": False}),
    ("adafactor", "hf", {**HF, "lr": 0.02, "relative_step": False}),
    ("adafactor", "keras", {}),
    (
        "adafactor",
        "keras",
        {"learning_rate": 0.3, "beta_2_decay": -0.6, "epsilon_2": 0.01, "clip_threshold": 1.5},
    ),
    ("PNM", "", {"lr": 0.05, "betas": [0.6, 0.3], "weight_decay": 0.2}),
    ("PNM", "", {"lr": 0.05, "betas": [0.6, 2.0], "weight_decay": 0.2, "decoupled": False}),
    ("AdaPNM", "", {}),
    ("AdaPNM", "", {**SMALL, "betas": [0.6, 0.9, 0.3], "amsgrad": False, "decoupled": False}),
    ("Adan", "", {}),
    ("Adan", "", {**SMALL, "betas": [0.9, 0.8, 0.7], "no_prox": True, "max_grad_norm": 0.0}),
    ("ACProp", "", {}),
    ("ACProp", "", {**ACPROP, "degenerated_to_sgd": False}),
    ("ACProp", "", {**ACPROP, "weight_decouple": False, "momentum_update": True}),
    ("ACProp", "", {**ACPROP, **NO_RECTIFIER, **AMSGRAD, "fixed_decay": True}),
    ("ACProp", "", {**ACPROP, **NO_RECTIFIER, "momentum_update": True, "betas": [0.8, 0.99]}),
    ("diffGrad", "", {}),
    *(("diffGrad", "", {**SMALL, "version": version}) for version in (0, 1, 2)),
    ("GeneralizedSignSGD", "", {**SMALL, "use_bias_correction": True}),
    ("Padam", "", {}),
    ("Padam", "", {**SMALL, "partial": 0.4, "amsgrad": False, "decoupled_wd": True}),
    ("Gadam", "", {**SMALL, **AMSGRAD, "ia_start": 4, "ia_every": 3}),
    ("GadamX", "", {**SMALL, "partial": 0.1, "decoupled_wd": True, "ia_start": 4}),
    ("SWA", "", {"lr": 0.02, "momentum": 0.8, "nesterov": True, "ia_start": 4, "ia_every": 2}),
    ("SWA", "", {"lr": 0.02, "momentum": 0.8, "dampening": 0.3, "ia_start": 0}),
]


@pytest.mark.sample(8)
@pytest.mark.parametrize(
    ("system", "source", "told"),
    [pytest.param(*form, marks=pytest.mark.slow if i % 3 else ()) for i, form in enumerate(FORMS)],
)
def test_other_hyperparameters(tmp_path: Path, system: str, source: str, told: Any) -> None:
    formula = FORMULAS[system, source]
    known = {k: v for k, v in told.items() if k not in ("foreach", "max_grad_norm")}
    kinds = ("avg",) if "ia_start" in told else ()
    arrays = trajectory(functools.partial(formula, **known), kinds)
    check(written(tmp_path, system, source, told, arrays))


OPTAX: list[tuple[str, str, dict[str, Any]]] = [
    ("adam", "adam", {"learning_rate": 0.02, "b1": 0.7, "eps_root": 1e-4, "nesterov": True}),
    ("adamw", "adamw", {"learning_rate": 0.02}),
    ("adamw", "adamw", {"learning_rate": 0.02, "b2": 0.9, "weight_decay": 0.3, "nesterov": True}),
    ("adamax", "adamax", {"learning_rate": 0.02, "b2": 0.9, "eps": 1e-3}),
    ("adamax", "adamaxw", {"learning_rate": 0.02, "weight_decay": 0.1}),
    ("amsgrad", "amsgrad", {"learning_rate": 0.02, "eps_root": 1e-4, "bias_correction_mu": False}),
    ("radam", "radam", {"learning_rate": 0.02, "b2": 0.9, "threshold": 4.5, "nesterov": True}),
    ("adafactor", "adafactor", {"learning_rate": 0.02, "min_dim_size_to_factor": 2}),
    ("adafactor", "adafactor", {"min_dim_size_to_factor": 3, "decay_rate": 0.6, "momentum": 0.8}),
    (
        "adafactor",
        "adafactor",
        {"learning_rate": 0.1, "weight_decay_rate": 0.01, "clipping_threshold": 1.5, "eps": 1e-6},
    ),
]


def optax_trajectory(tx: Any) -> Arrays:
    params, gradients = recorded_gradients()

    def step(carry: Any, gradient: Any) -> Any:
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        start = jax.tree.map(jnp.asarray, params)
        seen = jax.lax.scan(step, (start, tx.init(start)), gradients)[1]
    arrays = {f"params_0_{leaf}": p for leaf, p in params.items()}
    arrays |= {f"grads_{leaf}": g for leaf, g in gradients.items()}
    return arrays | {f"params_{leaf}": np.asarray(p) for leaf, p in seen.items()}


@pytest.mark.sample(4)
@pytest.mark.parametrize(("system", "name", "told"), OPTAX)
def test_other_hyperparameters_of_optax(tmp_path: Path, system: str, name: str, told: Any) -> None:
    more = {"dtype_momentum": np.float64} if "momentum" in told else {}
    with jax.enable_x64(True):
        arrays = optax_trajectory(getattr(optax, name)(**told, **more))
    # Its Adafactor computes the rate of the second moment in float32.
    wide = {"suggested_rtol": 1e-5, "suggested_atol": 1e-7} if system == "adafactor" else {}
    check(written(tmp_path, system, "optax", told, arrays, **wide))


INNER: dict[str, tuple[Any, dict[str, Any]]] = {
    "SGD lr=0.05": (sgd, {"lr": 0.05}),
    "SGD lr=1e-2 momentum=0.8, nesterov=True weight_decay=0.1": (
        sgd,
        {"lr": 0.01, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
    ),
    "torch.optim.Adam(lr=0.02, betas=(0.7, 0.9), amsgrad=true)": (
        torch_adam,
        {"lr": 0.02, "betas": BETAS, "amsgrad": True},
    ),
    "torch AdamW lr=0.02": (torch_adamw, {"lr": 0.02}),
    "torch RAdam lr=0.02 betas=[0.7,0.9]": (torch_radam, {"lr": 0.02, "betas": BETAS}),
    "Adamax eps=1e-3": (torch_adamax, {"eps": 1e-3}),
    "official RAdam lr=0.02 degenerated_to_sgd=True weight_decay=0.1": (
        official_radam,
        {"lr": 0.02, "degenerated_to_sgd": True, "weight_decay": 0.1},
    ),
}


WITH_MOMENTUM = next(text for text, (_, told) in INNER.items() if "momentum" in told)


@pytest.mark.parametrize(
    ("text", "pullback"),
    [(WITH_MOMENTUM, "pullback"), (WITH_MOMENTUM, "none"), *((text, "reset") for text in INNER)],
)
def test_lookahead_around_any_optimizer(tmp_path: Path, text: str, pullback: str) -> None:
    formula, told = INNER[text]
    h = {"inner": text, "k": 4, "alpha": 0.3, "pullback_momentum": pullback}
    arrays = trajectory(functools.partial(looked_ahead(formula, told), **h), ("slow",))
    check(written(tmp_path, "lookahead", "pytorch_optimizer", h, arrays))


def test_averages_may_lack(tmp_path: Path) -> None:
    h = {"inner": "SGD lr=0.05", "k": 4, "alpha": 0.3}
    formula = functools.partial(looked_ahead(sgd, {"lr": 0.05}), **h)
    arrays = trajectory(formula, ("slow",))
    del arrays["slow_w"], arrays["slow_s"]
    check(written(tmp_path, "lookahead", "lookahead_official", h, arrays))
    del arrays["slow_b"], arrays["slow_t"]
    check(written(tmp_path, "lookahead", "lookahead_official", h, arrays))
    del arrays["params_b"]
    with pytest.raises(AssertionError, match="lacks the parameters \\['b'\\]"):
        check(written(tmp_path, "lookahead", "lookahead_official", h, arrays))


def test_what_lookahead_does_not_repeat_is_said(tmp_path: Path) -> None:
    arrays = trajectory(sgd)
    for source, text, pullback, message in [
        ("lookahead_official", "SGD momentum=0.9", "pullback", "not offer pullback_momentum"),
        ("lookahead_official", "SGD momentum=0.9 dampening=0.5", "reset", "with dampening"),
        ("lookahead_official", "SGD warp=9", "none", "hyperparameter 'warp'=9"),
        (
            "lookahead_official",
            "torch Warp lr=1",
            "none",
            "no row for the system 'warp' of 'torch'",
        ),
        ("optax", "see the notes!", "none", "cannot read the optimizer"),
    ]:
        told = {"inner": text, **({"pullback_momentum": pullback} if source != "optax" else {})}
        with pytest.raises(AssertionError, match=message):
            check(written(tmp_path, "lookahead", source, told, arrays))


@pytest.mark.parametrize("inner", ["adam(0.02, b2=0.9)", "sgd(0.02, 0.8, nesterov=True)"])
def test_lookahead_of_optax(tmp_path: Path, inner: str) -> None:
    with jax.enable_x64(True):
        fast = eval(f"optax.{inner}", {"optax": optax})
        tx, told = optax.lookahead(fast, 4, 0.3), {"sync_period": 4, "slow_step_size": 0.3}
        params, gradients = recorded_gradients()
        both = optax.LookaheadParams.init_synced(jax.tree.map(jnp.asarray, params))
        state, rows = tx.init(both), []
        for i in range(STEPS):
            gradient = jax.tree.map(lambda g, i=i: jnp.asarray(g[i]), gradients)
            with jax.numpy_dtype_promotion("standard"):
                updates, state = tx.update(gradient, state, both)
            both = optax.apply_updates(both, updates)
            rows.append(both)
        seen = jax.tree.map(lambda *x: np.stack(x), *rows)
    arrays = {f"params_0_{leaf}": p for leaf, p in params.items()}
    arrays |= {f"grads_{leaf}": g for leaf, g in gradients.items()}
    arrays |= {f"params_{leaf}": p for leaf, p in seen.fast.items()}
    arrays |= {f"slow_{leaf}": p for leaf, p in seen.slow.items()}
    check(written(tmp_path, "lookahead", "optax", {"inner": f"optax.{inner}", **told}, arrays))


def test_restarts_of_adan_at_any_steps(tmp_path: Path) -> None:
    for after, words in [
        ((5,), "once, right after step 5"),
        ((4, 8, 12, 16), "after steps 4, 8, 12, 16"),
    ]:
        arrays = trajectory(functools.partial(FORMULAS["Adan", ""], lr=0.02, restarts=after))
        notes = f"restart_opt() is called {words}: the moments are emptied"
        check(written(tmp_path, "Adan", "", {"lr": 0.02}, arrays, notes=notes))


def cycled(cycle: Any, b2: float, decay: Any) -> Arrays:
    """Adam under a cycle of learning rate and b1, as fastai drives it."""
    rates, momenta = cycle

    def step(p: Any, g: Any, s: Any, t: int) -> Any:
        return adam(p, g, s, t, rates[t - 1], momenta[t - 1], b2, 1e-4, **decay)

    return trajectory(step) | {"lr": rates, "beta1": momenta}


FASTAI2 = {"lr": 0.02, "mom": [0.9, 0.7, 0.8], "pct": 0.4, "div": 10.0, "div_final": 1e3}
FASTAI1 = {"pct_start": 0.4, "div_factor": 10.0, "final_div": 1e3, "moms": [0.9, 0.7]}
PHASES = {"lr": 0.02, "moms": [0.9, 0.7], "div": 5.0, "lin_end": True, "batches_per_epoch": 5}


@pytest.mark.parametrize("missing", [(), ("lr",), ("beta1",), ("lr", "beta1")])
def test_cycles_with_arrays_and_without(tmp_path: Path, missing: tuple[str, ...]) -> None:
    cycles: list[tuple[str, dict[str, Any], Any, dict[str, float]]] = [
        (
            "fastai2",
            {**FASTAI2, "wd": 0.1, "decouple": False, "sqr_mom": 0.9, "eps": 1e-4},
            fastai2_cycle(STEPS, **FASTAI2),
            {"l2": 0.1},
        ),
        (
            "fastai1",
            {**FASTAI1, "lr_max": 0.02, "wd": 0.1, "b2": 0.9, "eps": 1e-4},
            fastai1_cycle(STEPS, 0.02, **FASTAI1),
            {"wd": 0.1},
        ),
        (
            "fastai07",
            {**PHASES, "nbs": [1.0, 1.7, 0.7], "wd": 0.1, "beta2": 0.9, "eps": 1e-4},
            phase_cycle(STEPS, **PHASES, nbs=[1.0, 1.7, 0.7]),
            {"l2": 0.1},
        ),
    ]
    for source, told, cycle, decay in cycles:
        arrays = cycled(cycle, 0.9, decay)
        for name in missing:
            del arrays[name]
        check(written(tmp_path, "fastai_onecycle", source, told, arrays))


SCHEDULES: list[tuple[str, dict[str, Any], Any]] = [
    (
        "fastai2",
        {"lr_max": 0.02, "moms": [0.9, 0.7, 0.8], "pct_start": 0.4, "div": 9.0, "div_final": 50.0},
        fastai2_cycle(43, 0.02, [0.9, 0.7, 0.8], 0.4, 9.0, 50.0),
    ),
    (
        "fastai1",
        {
            "lr_max": 0.02,
            "moms": [0.9, 0.7],
            "pct_start": 0.4,
            "div_factor": 9.0,
            "final_div": None,
        },
        fastai1_cycle(43, 0.02, [0.9, 0.7], 0.4, 9.0, 9e4),
    ),
    *(
        ("torch", told, torch_cycle(43, **told))
        for told in (
            {"max_lr": 0.02, "base_momentum": 0.6, "max_momentum": 0.9, "div_factor": 8.0},
            {"max_lr": 0.02, "three_phase": True, "final_div_factor": 30.0, "pct_start": 0.2},
            {"max_lr": 0.02, "anneal_strategy": "linear", "max_momentum": 0.99},
        )
    ),
    *(
        (
            "fastai07",
            {**PHASES, "nbs": nbs, "lin_end": linear},
            phase_cycle(43, **{**PHASES, "nbs": nbs, "lin_end": linear}),
        )
        for nbs, linear in [
            ([3.0, 3.0, 2.6], False),
            ([2.0, 3.0, 3.6], True),
            ([1.0, 2.4, 3.1, 2.1], False),
        ]
    ),
]


@pytest.mark.parametrize(("source", "told", "cycle"), SCHEDULES)
def test_cycles_of_every_source(tmp_path: Path, source: str, told: Any, cycle: Any) -> None:
    total = {} if source == "fastai07" else {"total_steps": 43}
    arrays = dict(zip(("lr", "mom"), cycle, strict=True))
    check(written(tmp_path, "schedule", source, {**told, **total}, arrays))
    check(written(tmp_path, "schedule", source, {**told, **total}, {"lr": arrays["lr"]}))
    with pytest.raises(AssertionError, match="'warp'=9"):
        check(written(tmp_path, "schedule", source, {**told, **total, "warp": 9}, arrays))


def test_onecycle_schedules_of_optax(tmp_path: Path) -> None:
    told = {"transition_steps": 40, "peak_value": 0.02, "pct_start": 0.2, "div_factor": 9.0}
    for schedule, more in [
        (optax.cosine_onecycle_schedule, {"final_div_factor": 30.0}),
        (optax.linear_onecycle_schedule, {"final_div_factor": 30.0, "pct_final": 0.7}),
    ]:
        with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
            values = np.asarray([schedule(**told, **more)(i) for i in range(41)])
        wide = {"suggested_rtol": 1e-6}
        check(written(tmp_path, "schedule", "optax", {**told, **more}, {"lr": values}, **wide))


DECAYING = {"lr": 0.02, "wds": 0.3, "cycle_len": 2, "cycle_mult": 2, "batches_per_epoch": 2}


@pytest.mark.parametrize("mult", [False, True])
@pytest.mark.parametrize("with_arrays", [False, True])
def test_decay_schedules_of_fastai(tmp_path: Path, with_arrays: bool, mult: bool) -> None:
    eta, lengths = np.zeros(STEPS), np.zeros(STEPS)
    first, length = 0, 4
    for i in range(STEPS):
        if i == first + length:
            first, length = i, 2 * length
        eta[i], lengths[i] = (1 + np.cos(np.pi * (i - first) / length)) / 2, length
    eta[0] = 0.01  # a twentieth of the first period
    decay = 0.3 / np.sqrt(lengths) * (eta if mult else 1.0)

    def step(p: Any, g: Any, s: Any, t: int) -> Any:
        rate = 0.02 * eta[t - 1]
        return sgd(p, g, s, t, rate, momentum=0.7, nesterov=True) - rate * decay[t - 1] * p

    told = {
        **DECAYING,
        "norm_wds": True,
        "mult": mult,
        "optimizer": "SGD momentum=0.7 nesterov=True",
    }
    arrays = trajectory(step) | ({"lr": 0.02 * eta, "wd_out": decay} if with_arrays else {})
    check(written(tmp_path, "fastai_wdsched", "fastai07", told, arrays))


AUTHORS = {"LR": 0.02, "wd": 0.3, "nBatches": 2, "Te": 2, "Tmult": 3}


@pytest.mark.sample(4)
@pytest.mark.parametrize("missing", [(), ("Te",), ("lr", "Te")])
@pytest.mark.parametrize("form", ["ADAMW", "ADAMdec", "SGDW", "SGD"])
def test_restarts_of_the_authors(tmp_path: Path, form: str, missing: tuple[str, ...]) -> None:
    for more in ({}, {"LRdec": "false"}):
        plan = {k: v for k, v in (AUTHORS | more).items() if k not in ("LR", "wd")}
        eta, periods = authors_schedule(STEPS, **plan)
        decay = 0.3 / np.sqrt(2 * periods) if form.endswith("W") else np.full(STEPS, 0.3)
        adams = {"beta1": 0.7, "beta2": 0.9, "epsilon": 1e-3}

        def step(p: Any, g: Any, s: Any, t: int, eta: Any = eta, decay: Any = decay) -> Any:
            rate, lost = 0.02 * eta[t - 1], eta[t - 1] * decay[t - 1]
            if form == "SGD":
                return sgd(p, g, s, t, rate, momentum=0.7, weight_decay=0.3)
            if form == "SGDW":
                return sgd(p, g, s, t, rate, momentum=0.7, nesterov=True) - lost * p
            return adam(p, g, s, t, rate, 0.7, 0.9, 1e-3, hat=True) - lost * p

        arrays = trajectory(step) | {"lr": 0.02 * eta, "Te": periods}
        told = {"alg": form, **AUTHORS, **more}
        told |= adams if form.startswith("ADAM") else {"momentum": 0.7, "nesterov": form == "SGDW"}
        for name in missing:
            del arrays[name]
        system = "adamwr" if form.startswith("ADAM") else "sgdwr"
        check(written(tmp_path, system, "loshchil", told, arrays))


JOINT: list[tuple[str, dict[str, Any]]] = [
    ("SGDClipGrad", {"lr": 0.1, "clipping_param": 0.5, "momentum": 0.7, "dampening": 0.4}),
    ("SGDClipGrad", {"lr": 0.1, "clipping_param": 1.5, "momentum": 0.7, "nesterov": True}),
    ("SGDNormalized", {"lr": 0.1, "momentum": 0.7, "weight_decay": 0.1}),
    ("KOALA-V", {}),
    ("KOALA-V", {"sigma": 0.3, "q": 0.2, "alpha_r": 0.6, "weight_decay": 0.01, "lr": 0.5}),
    ("KOALA-M", {"alpha_r": 0.6, "weight_decay": 0.01, "lr": 0.5}),
    ("KOALA-M", {"sw": 0.2, "sc": 0.02, "sv": 0.3, "a": 0.5, "qw": 0.03, "qv": 0.05, "r": 3.0}),
]
OF_ALL_LEAVES = {
    "SGDClipGrad": clipped_sgd,
    "SGDNormalized": clipped_sgd,
    "KOALA-V": koala_v,
    "KOALA-M": koala_m,
}


@pytest.mark.sample(3)
@pytest.mark.parametrize(("system", "told"), JOINT)
def test_other_hyperparameters_of_joint_steps(tmp_path: Path, system: str, told: Any) -> None:
    params, gradients = recorded_gradients()
    arrays = {f"params_0_{leaf}": p for leaf, p in params.items()}
    arrays |= {f"grads_{leaf}": g for leaf, g in gradients.items()}
    losses = np.random.default_rng(1).uniform(0.5, 2.0, size=STEPS)
    for known in (True, False):  # a file may lack the mean squares
        squares = losses**2 + (0.3 if known else 0.0)
        state, p, rows = {}, params, []
        for t in range(STEPS):
            g = {leaf: g[t] for leaf, g in gradients.items()}
            measured = (losses[t], squares[t]) if "KOALA" in system else ()
            p = OF_ALL_LEAVES[system](p, g, state, t + 1, *measured, **told)
            rows.append(p)
        seen = {f"params_{leaf}": np.stack([row[leaf] for row in rows]) for leaf in params}
        loss = {"loss": losses, **({"loss_var": squares} if known else {})}
        check(written(tmp_path, system, "", {**told, "_seed": 1}, arrays | seen | loss))


FORMS_NOT_OFFERED: list[tuple[str, str, dict[str, Any], str]] = [
    ("adamax", "fairseq", {"no_bias_correction": True}, "no_bias_correction=True"),
    ("adam", "keras", {"clipnorm": 1.0}, "clipnorm=1.0"),
    ("adafactor", "keras", {"weight_decay": 0.1}, "weight_decay=0.1"),
    ("radam", "fastai2", {"lr": 0.1, "beta": 2.0}, "beta=2.0"),
    ("ACProp", "", {"amsgrad": True}, "amsgrad=True"),
    ("diffGrad", "", {"version": 7}, "variant=7"),
    ("amsgrad", "torch", {"amsgrad": True, "weight_decay": 0.1}, "L2 or decoupled decay"),
]


@pytest.mark.parametrize(("system", "source", "told", "message"), FORMS_NOT_OFFERED)
def test_a_form_that_is_not_offered_is_said(
    tmp_path: Path, system: str, source: str, told: Any, message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        check(written(tmp_path, system, source, told, trajectory(sgd)))


@pytest.mark.parametrize("key", TABLE, ids="-".join)
def test_no_row_overlooks_a_hyperparameter(tmp_path: Path, key: tuple[str, str]) -> None:
    """Every argument of every row is one of its function, and what a row does not name fails."""
    for row in TABLE[key]:
        told = {"inner": "SGD lr=1", "optimizer": "SGD lr=1", **row.when, "warp": 9}
        told = {k: v for k, v in told.items() if k in row.names or k in ("warp", *row.when)}
        case = written(tmp_path, *key, told, trajectory(sgd), notes=row.says)
        with pytest.raises(AssertionError, match="hyperparameter 'warp'=9"):
            row.arguments(case)
        parameters = inspect.signature(row.function).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            named = {name for name in row.names.values() if isinstance(name, str)}
            assert named | set(row.options) | set(row.recorded) <= set(parameters)


def test_a_file_without_the_schedule_it_tells_of_fails(tmp_path: Path) -> None:
    told = {"lr": 0.1, "ia_start": 3, "schedule": {"rule": "linear"}}
    with pytest.raises(AssertionError, match="lacks 'lr'"):
        check(written(tmp_path, "Gadam", "", told, trajectory(sgd)))
