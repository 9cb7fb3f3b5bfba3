"""The hyperparameters of the golden manifests as arguments of the public functions: one table.

A row says which function reproduces a source's form of a system, under which of its arguments each
hyperparameter goes, and which arguments that form always has. A hyperparameter that the row does not
name is an error, and so is a system without a row that is not in ``PENDING``.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adamw_jax as aj
from tests.golden_cases import Case

Options = dict[str, Any]
Translation = Callable[[Any, Case], Options]
Name = str | Translation | None
"""An argument's name; a function that gives arguments; or None where the recorded schedules, or the
choice of the row, say it already."""


@dataclasses.dataclass(frozen=True)
class Row:
    """How one form of a system is written with the public functions.

    Attributes:
      function: the public function.
      names: hyperparameter -> argument.
      options: arguments that this form always has.
      recorded: argument -> recorded array of its value at each step.
      own: the arguments of ``recorded`` from this library's schedules instead; None where the
        manifest does not say how the schedule came about.
      own_rtol: tolerance with them, where the source computed its schedule in float32.
      when: hyperparameters that choose the row.
      says: words of the manifest that choose the row.
    """

    function: Callable[..., Any]
    names: Mapping[str, Name]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    recorded: Mapping[str, str] = dataclasses.field(default_factory=dict)
    own: Callable[[Case], Options | None] | None = None
    own_rtol: float | None = None
    when: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    says: str = ""

    def fits(self, case: Case) -> bool:
        """Whether the row is that of the case."""
        h = case.hyperparameters
        return all(h.get(k) == v for k, v in self.when.items()) and self.says in case.says

    def own_schedules(self, case: Case) -> Options | None:
        """The arguments that replace the recorded ones, or None."""
        return None if self.own is None else self.own(case)

    def arguments(self, case: Case, own_schedules: bool = False) -> Options:
        """All arguments of ``function``."""
        h, options = case.hyperparameters, dict(self.options)
        unknown = sorted(set(h) - set(self.names) - set(self.when))
        assert not unknown, f"{case.label}: no argument for the hyperparameters {unknown}"
        for key, value in h.items():
            name = self.names.get(key)
            if callable(name):
                options.update(name(value, case))
            elif name is not None:
                options[name] = recorded_or_number(value, case)
        options.update({k: per_step(case.arrays[array]) for k, array in self.recorded.items()})
        return {**options, **(self.own_schedules(case) or {})} if own_schedules else options


def per_step(array: np.ndarray) -> Callable[[Any], jax.Array]:
    """A recorded array as a schedule."""
    return lambda count: jnp.asarray(array, jax.dtypes.canonicalize_dtype(float))[count]


def recorded_or_number(value: Any, case: Case) -> Any:
    """A hyperparameter as it is, or the recorded array that it refers to ("per-step array lr")."""
    if not isinstance(value, str):
        return value
    reference = re.fullmatch(r"(?:per-step )?array (\w+)(?: \(.*\))?", value)
    assert reference, f"{case.label}: cannot read the hyperparameter {value!r}"
    return per_step(case.arrays[reference[1]])


def row_of(case: Case) -> Row:
    """The row of a case."""
    rows = TABLE.get((case.system, case.source), ())
    fitting = next((row for row in rows if row.fits(case)), None)
    assert fitting is not None, (
        f"{case.label}: no row for the system {case.system!r} of {case.source!r} with "
        f"{case.hyperparameters}"
    )
    return fitting


def build(case: Case, *, own_schedules: bool = False, **changed: Any) -> Any:
    """The transformation of a case; ``changed`` arguments make it another one.

    Cases that differ in their gradients only share it, and so one compilation.
    """
    row = row_of(case)

    def make() -> Any:
        return row.function(**{**row.arguments(case, own_schedules), **changed})

    if changed:
        return make()
    key = (_recipe(case), own_schedules, jax.config.jax_enable_x64)
    if key not in _BUILT:
        _BUILT[key] = make()
    return _BUILT[key]


_BUILT: dict[Any, Any] = {}


def _recipe(case: Case) -> str:
    """All that decides how a case is built, the recorded schedules among it."""
    told = ("system", "source_key", "hyperparameters", "notes", "role", "leaves", "steps")
    recorded = {
        name: array.tolist()
        for name, array in case.arrays.items()
        if not name.startswith(("params_", "grads_", "slow_", "fn_"))
    }
    return json.dumps([{key: case.entry.get(key) for key in told}, recorded], sort_keys=True)


# Arguments that need more than another name.


def betas(value: Any, case: Case) -> Options:
    return dict(zip(("b1", "b2"), value, strict=True))


def inner_state(value: str, case: Case) -> Options:
    return {"inner_state": {"none": "keep"}.get(value, value)}


def reset_state(value: bool, case: Case) -> Options:
    return {"inner_state": "reset" if value else "keep"}


def fallback(value: bool, case: Case) -> Options:
    return {"below": "momentum" if value else "skip"}


def only_matrices(value: bool, case: Case) -> Options:
    """fastai v1's ``bn_wd``: False leaves the group of biases and norms, b and s here, undecayed."""
    return {} if value else {"mask": {leaf: leaf == "w" for leaf in case.leaves}}


def decay_or_l2(flag_for_l2: bool) -> Translation:
    """A flag that says whether the ``wd`` of the case goes into the gradient."""

    def translate(value: bool, case: Case) -> Options:
        where = "l2" if value == flag_for_l2 else "weight_decay"
        return {where: case.hyperparameters["wd"]}

    return translate


def torch_clip(limit: float, case: Case) -> Options:
    """``torch.nn.utils.clip_grad_norm_``: a factor of at most limit / (norm + 1e-6), up to 1."""

    def clip(gradient: Any, state: Any, params: Any = None) -> Any:
        norm = optax.tree.norm(gradient)
        factor = jnp.minimum(jnp.ones([], norm.dtype), limit / (norm + 1e-6))
        return jax.tree.map(lambda g: g * factor, gradient), state

    before = optax.GradientTransformation(lambda params: optax.EmptyState(), clip)
    return {"before": before} if limit else {}


def after(before: Any = None, *, optimizer: Callable[..., Any] = aj.adam, **options: Any) -> Any:
    """An optimizer after another transformation."""
    return aj.compose(before, optimizer(**options))


TORCH: dict[str, Name] = {"lr": "learning_rate", "betas": betas, "eps": "eps", "amsgrad": "amsgrad"}
EPS_HAT = {"eps_hat": True}

INNER: dict[str, tuple[Callable[..., Any], dict[str, str], Options]] = {
    "SGD": (aj.sgdw, {"momentum": "momentum", "weight_decay": "l2"}, {"momentum": None}),
    "torch Adam": (aj.adam, {"weight_decay": "l2"}, {}),
    "torch AdamW": (aj.adamw, {"weight_decay": "weight_decay"}, {"weight_decay": 1e-2}),
    "official RAdam": (aj.radam, {"weight_decay": "weight_decay"}, EPS_HAT),
    "optax.adam": (aj.adam, {}, {}),
}
"""What Lookahead stands around, in the words of the manifest: names and defaults of that source."""


def inner(text: str, case: Case) -> Options:
    """``"SGD lr=1e-3 momentum=0.9"``, ``"optax.adam(0.01)"``."""
    text = re.sub(r"^(optax\.\w+)\(([^=,]+)\)$", r"\1 lr=\2", text)
    kind = text.partition("=")[0].rpartition(" ")[0]
    assert kind in INNER, f"{case.label}: unknown inner optimizer {text!r}"
    function, own_names, defaults = INNER[kind]
    names: Mapping[str, Name] = {**TORCH, **own_names}
    options = dict(defaults)
    for key, value in (word.split("=") for word in text.removeprefix(kind).split()):
        name = names.get(key)
        assert name is not None, f"{case.label}: unknown {key!r} in {text!r}"
        numbers = [float(number) for number in value.strip("()").split(",")]
        options.update(name(numbers, case) if callable(name) else {name: numbers[0]})
    return {"inner": function(**options)}


def ranger(sync_period: int, slow_step_size: float, **options: Any) -> Any:
    """Lookahead around RAdam."""
    return aj.lookahead(aj.radam(**options), sync_period, slow_step_size)


def authors_normalised(value: float, case: Case) -> Options:
    """Normalised decay of the recorded period: wd / sqrt(updates in it)."""
    updates = case.hyperparameters["nBatches"] * case.arrays["Te"]
    return {"weight_decay": per_step(value / np.sqrt(updates))}


# This library's schedules in the place of the recorded values.


def steps_of(case: Case) -> int:
    return case.entry["steps"]


def article_cycle(case: Case) -> Options:
    """The article's phases: three, or four with a plateau."""
    h = case.hyperparameters
    lengths = h["nbs"]
    whole, plateau = sum(lengths), len(lengths) == 4
    cycle = aj.one_cycle(
        h["lr"],
        round(whole * h["batches_per_epoch"]),
        "article_plateau" if plateau else "article",
        momentum=tuple(h["moms"]),
        div=h["div"],
        pct_end=lengths[-1] / whole,
        linear_end=h["lin_end"],
        **({"pct_start": lengths[0] / whole} if plateau else {}),
    )
    return {"learning_rate": cycle}


def fastai_v1_cycle(case: Case) -> Options:
    h = case.hyperparameters
    cycle = aj.one_cycle(
        h["lr_max"],
        h["total_steps"],
        "fastai_v1",
        momentum=tuple(h["moms"]),
        pct_start=h["pct_start"],
        div=h["div_factor"],
        final_div=h["final_div"],
    )
    return {"learning_rate": cycle}


def fastai_v2_cycle(case: Case) -> Options:
    h = case.hyperparameters
    cycle = aj.one_cycle(
        h["lr"],
        steps_of(case),
        "fastai_v2",
        momentum=tuple(h["mom"][:2]),
        pct_start=h["pct"],
        div=h["div"],
        final_div=h["div_final"],
    )
    return {"learning_rate": cycle}


def decay_schedule(case: Case) -> Options:
    """fastai 0.7 ``use_wd_sched``: cosine cycles or none, decay normalised by the cycle or not."""
    h = case.hyperparameters
    decay, cycle = h["wds"], h["cycle_len"]
    if h["norm_wds"]:
        decay = aj.normalized_decay(decay, h["batches_per_epoch"] * (cycle or 1))
    if cycle is None:
        assert not h["mult"]
        return {"learning_rate": h["lr"], "weight_decay": decay}
    restarts = aj.warm_restarts(
        h["lr"],
        cycle,
        1,
        steps_per_epoch=h["batches_per_epoch"],
        convention="fastai07",
        total_steps=steps_of(case),
    )
    twice = lambda count: decay * restarts.multiplier(count)  # noqa: E731
    return {
        "learning_rate": restarts.learning_rate,
        "weight_decay": twice if h["mult"] else decay,
    }


def authors_restarts(normalized: bool = False) -> Callable[[Case], Options]:
    """The schedule of the AdamW authors' code."""

    def make(case: Case) -> Options:
        h = case.hyperparameters
        if h.get("LRdec") == "false":
            return {"learning_rate": h["LR"]}
        restarts = aj.warm_restarts(
            h["LR"],
            h["Te"],
            h["Tmult"],
            steps_per_epoch=h["nBatches"],
            normalized_decay=h["wd"] if normalized else None,
            convention="authors",
            total_steps=steps_of(case),
        )
        return {"learning_rate": restarts}

    return make


def paper_restarts(case: Case) -> Options | None:
    """Cosine restarts in the paper's indexing, where the manifest gives the periods."""
    h = case.hyperparameters
    told = re.search(r"T0=(\d+), Tmult=(\d+)", h["eta"])
    if told is None:
        return None
    return {"learning_rate": aj.warm_restarts(h["alpha"], int(told[1]), int(told[2]))}


def scaled_eta(value: str, case: Case) -> Options:
    """The paper's alpha eta_t, and alpha as the base by which the decay divides it again."""
    alpha = case.hyperparameters["alpha"]
    return {
        "learning_rate": per_step(alpha * case.arrays["eta"]),
        "base_learning_rate": alpha,
    }


# The table.

OPTAX: dict[str, Name] = {
    name: name for name in ("learning_rate", "b1", "b2", "eps", "eps_root", "weight_decay", "mask")
}
L2: dict[str, Name] = {"weight_decay": "l2"}
DECAY: dict[str, Name] = {"weight_decay": "weight_decay"}
FASTAI: dict[str, Name] = {
    "lr": "learning_rate",
    "mom": "b1",
    "sqr_mom": "b2",
    "eps": "eps",
    "wd": "weight_decay",
}

PHASES: dict[str, Name] = {
    **dict.fromkeys(("lr", "moms", "div", "nbs", "lin_end", "wd", "batches_per_epoch")),
    "wd_loss": decay_or_l2(flag_for_l2=True),
    "clip": torch_clip,
}
ADAM_PHASES: dict[str, Name] = {"beta2": "b2", "eps": "eps", "amsgrad": "amsgrad"}
FASTAI_CORRECTION = {"bias_correction": "current"}
CYCLED = {"learning_rate": "lr", "b1": "beta1"}

AUTHORS: dict[str, Name] = {
    **dict.fromkeys(("nBatches", "Te", "Tmult", "LRdec")),
    "LR": "base_learning_rate",
}
AMSGRAD = {"amsgrad": True}
BY_SCHEDULE = {"decay": "schedule"}
RATE = {"learning_rate": "lr"}


def authors(
    algorithm: str, function: Callable[..., Any], extra: Any, options: Options
) -> list[Row]:
    """The three forms of the AdamW authors' code: L2, decay, normalised decay."""
    forms: list[tuple[str, Name, bool]] = [
        ("", "l2", False),
        ("dec", "weight_decay", False),
        ("W", authors_normalised, True),
    ]
    return [
        Row(
            function,
            {**AUTHORS, **extra, "wd": name},
            {**options, **BY_SCHEDULE},
            RATE,
            authors_restarts(normalized),
            when={"alg": algorithm + suffix},
        )
        for suffix, name, normalized in forms
    ]


TABLE: dict[tuple[str, str], list[Row]] = {
    ("adam", "torch"): [Row(aj.adam, {**TORCH, **L2})],
    ("adam", "fairseq"): [Row(aj.adam, {**TORCH, **DECAY}, EPS_HAT)],
    ("adam", "keras"): [Row(aj.adam, TORCH, EPS_HAT)],
    ("adam", "optax"): [Row(aj.adam, {**OPTAX, "nesterov": "nesterov"})],
    ("adamax", "torch"): [Row(aj.adamax, {**TORCH, **L2})],
    ("adamax", "keras"): [Row(aj.adamax, TORCH, {"eps_inside_max": False})],
    ("adamax", "fairseq"): [Row(aj.adamax, {**TORCH, **DECAY}, {"eps_inside_max": False})],
    ("adamax", "optax"): [Row(aj.adamax, OPTAX)],
    ("adamw", "torch"): [Row(aj.adamw, {**TORCH, **DECAY})],
    ("adamw", "fairseq"): [Row(aj.adamw, {**TORCH, **DECAY}, EPS_HAT)],
    ("adamw", "optax"): [Row(aj.adamw, {**OPTAX, "nesterov": "nesterov"})],
    ("adamwr", "loshchil"): authors("ADAM", aj.adamw, {}, {**EPS_HAT, "weight_decay": None}),
    ("adamwr", "paper"): [
        Row(
            aj.adamw,
            {
                "alpha": None,
                "beta1": "b1",
                "beta2": "b2",
                "eps": "eps",
                "lam": "weight_decay",
                "eta": scaled_eta,
            },
            BY_SCHEDULE,
            own=paper_restarts,
        )
    ],
    ("sgdwr", "loshchil"): authors("SGD", aj.sgdw, {"momentum": "momentum"}, {}),
    ("sgdwr", "paper"): [
        Row(
            aj.sgdw,
            {"alpha": None, "beta1": "momentum", "lam": "weight_decay", "eta": scaled_eta},
            {**BY_SCHEDULE, "schedule_inside": True},
            own=paper_restarts,
        )
    ],
    ("amsgrad", "torch"): [
        Row(aj.amsgrad, {**TORCH, **L2}, when=AMSGRAD, says="L2 in the gradient"),
        Row(aj.amsgrad, {**TORCH, **DECAY}, when=AMSGRAD, says="decoupled decay"),
        Row(aj.amsgrad, TORCH, when={**AMSGRAD, "weight_decay": 0.0}),
    ],
    ("amsgrad", "keras"): [Row(aj.amsgrad, TORCH, EPS_HAT)],
    ("amsgrad", "optax"): [
        Row(
            aj.amsgrad,
            {**OPTAX, **{f"bias_correction_{m}": f"bias_correction_{m}" for m in ("mu", "nu")}},
            {"maximum": "corrected"},
        )
    ],
    ("radam", "radam_official"): [
        Row(aj.radam, {**TORCH, **DECAY, "degenerated_to_sgd": fallback}, EPS_HAT)
    ],
    ("radam", "torch"): [
        Row(
            aj.radam,
            {**TORCH, **DECAY},
            {**EPS_HAT, "below": "momentum"},
            when={"decoupled_weight_decay": True},
        ),
        Row(
            aj.radam,
            {**TORCH, **L2, "decoupled_weight_decay": None},
            {**EPS_HAT, "below": "momentum"},
        ),
    ],
    ("radam", "optax"): [Row(aj.radam, {**OPTAX, "threshold": "threshold"}, {"below": "momentum"})],
    ("radam", "fastai2"): [Row(aj.radam, FASTAI, {"below": "momentum"})],
    ("lookahead", "lookahead_official"): [
        Row(
            aj.lookahead,
            {
                "inner": inner,
                "k": "sync_period",
                "alpha": "slow_step_size",
                "pullback_momentum": inner_state,
            },
        )
    ],
    ("lookahead", "optax"): [
        Row(
            aj.lookahead,
            {
                "inner": inner,
                "sync_period": "sync_period",
                "slow_step_size": "slow_step_size",
                "reset_state": reset_state,
            },
        )
    ],
    ("lookahead", "fastai2"): [
        Row(
            ranger,
            {**FASTAI, "k": "sync_period", "alpha": "slow_step_size"},
            {"below": "momentum"},
        )
    ],
    ("fastai_onecycle", "fastai07"): [
        Row(
            after,
            {**PHASES, "eps": None},
            {"optimizer": aj.sgdw},
            {"learning_rate": "lr", "momentum": "beta1"},
            article_cycle,
            when={"sgd": True},
        ),
        Row(after, {**PHASES, **ADAM_PHASES}, FASTAI_CORRECTION, CYCLED, article_cycle),
    ],
    ("fastai_onecycle", "fastai1"): [
        Row(
            aj.adam,
            {
                **dict.fromkeys(("lr_max", "pct_start", "div_factor", "final_div", "moms")),
                **dict.fromkeys(("total_steps", "wd")),
                "true_wd": decay_or_l2(flag_for_l2=False),
                "bn_wd": only_matrices,
                "b2": "b2",
                "eps": "eps",
            },
            FASTAI_CORRECTION,
            CYCLED,
            fastai_v1_cycle,
        )
    ],
    ("fastai_onecycle", "fastai2"): [
        Row(
            aj.adam,
            {
                **dict.fromkeys(("lr", "mom", "pct", "div", "div_final", "wd")),
                "decouple": decay_or_l2(flag_for_l2=False),
                "sqr_mom": "b2",
                "eps": "eps",
            },
            FASTAI_CORRECTION,
            CYCLED,
            fastai_v2_cycle,
            own_rtol=1e-6,
        )
    ],
    ("fastai_wdsched", "fastai07"): [
        Row(
            aj.adam,
            {
                **dict.fromkeys(("lr", "wds", "cycle_len", "norm_wds", "mult")),
                **dict.fromkeys(("batches_per_epoch", "epochs", "wds_sched_mult")),
            },
            {"b1": 0.9, "b2": 0.99, "eps": 1e-8},
            {"learning_rate": "lr", "weight_decay": "wd_out"},
            decay_schedule,
            when={"optimizer": "Adam betas=(0.9,0.99) eps=1e-8"},
        )
    ],
}
TABLE["lookahead", "pytorch_optimizer"] = TABLE["lookahead", "lookahead_official"]

PENDING = {
    "adafactor": "adafactor",
    "PNM": "pnm",
    "AdaPNM": "adapnm",
    "Adan": "adan",
    "ACProp": "acprop",
    "diffGrad": "diffgrad",
    "GeneralizedSignSGD": "generalized_signsgd",
    "SGDClipGrad": "clipped_sgd",
    "SGDNormalized": "clipped_sgd",
    "Padam": "padam",
    "Gadam": "gadam",
    "GadamX": "gadamx",
    "SWA": "average_iterates",
    "batch-norm recomputation": "refresh_batch_stats",
    "KOALA-V": "koala_v",
    "KOALA-M": "koala_m",
    "AdamW8bit": "quantize_state",
    "SGD8bit": "quantize_state",
    "block-wise dynamic quantization": "quantize_state",
    "4-bit quantizers": "quantize_state",
    "percentile clipping": "percentile_clipping",
    "gradinit_first": "gradinit",
    "gradinit_trajectory": "gradinit",
    "lanczos": "curvature.lanczos",
    "lanczos_mlp": "curvature.lanczos",
    "slq": "curvature.spectral_density",
    "hutchinson": "curvature.hessian_diag",
    "r_med": "curvature.r_med",
    "preconditioned_sharpness": "curvature.preconditioned_sharpness",
    "gradient_noise_scale": "curvature.gradient_noise_scale",
    "radam_variance": "curvature.radam_variance",
    "lr_learner": "curvature.lr_momentum_from_spectrum",
    "batch_hessian_extremes": "curvature.batch_hessian_extreme",
}
"""Systems that have no row yet, and the public name that will bring them."""


def is_public(name: str) -> bool:
    """Whether the library has a function of that (dotted) name."""
    here: Any = aj
    for part in name.split("."):
        if not hasattr(here, part):
            try:
                importlib.import_module(f"{here.__name__}.{part}")
            except (ImportError, AttributeError):
                return False
        here = getattr(here, part)
    return True
