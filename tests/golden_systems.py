"""Golden manifests as public calls: one table from (system, source) to the optimizer that replays it.

Each row takes the hyperparameters by name (``h.pop``) and the recorded per-step arrays (``z``), and
gives the public transformation. A hyperparameter no row takes is an error, and so is an unknown
system or source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adamw_jax as aj

Row = Callable[[dict[str, Any], Mapping[str, np.ndarray]], optax.GradientTransformation]


def recorded(values: np.ndarray) -> Callable[[Any], jax.Array]:
    """A schedule that reads recorded per-step values."""
    table = jnp.asarray(values)
    return lambda count: table[count]


def _common(h: dict[str, Any], z: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """learning_rate, b1, b2 and eps under the names that the sources use."""
    rate = h.pop("lr", None) if "lr" in h else h.pop("learning_rate")
    b1, b2 = h.pop("betas") if "betas" in h else (h.pop("b1"), h.pop("b2"))
    rate = recorded(z["lr"]) if isinstance(rate, str) else rate
    return {"learning_rate": rate, "b1": b1, "b2": b2, "eps": h.pop("eps")}


def _decay(h: dict[str, Any], decoupled: bool) -> dict[str, Any]:
    """weight_decay of a source, as decoupled decay or as L2; 0 stands for none."""
    rate = h.pop("weight_decay", 0.0)
    return {} if rate == 0 else {"weight_decay" if decoupled else "l2": rate}


def _adam(h, z, **options):
    root = {"eps_root": h.pop("eps_root")} if "eps_root" in h else {}
    return aj.adam(**_common(h, z), **_decay(h, decoupled=False), **root, **options)


def _adamw(h, z, **options):
    mask = {"mask": h.pop("mask")} if "mask" in h else {}
    return aj.adamw(**_common(h, z), **_decay(h, decoupled=True), **mask, **options)


def _adamax(h, z, decoupled, **options):
    return aj.adamax(**_common(h, z), **_decay(h, decoupled), **options)


def _amsgrad_torch(h, z):
    assert h.pop("amsgrad")
    decoupled = h.pop("decoupled", False)
    return aj.amsgrad(**_common(h, z), **_decay(h, decoupled))


def _amsgrad_optax(h, z):
    flags = {name: h.pop(name) for name in ("bias_correction_mu", "bias_correction_nu")}
    corrected = flags["bias_correction_nu"]
    return aj.amsgrad(**_common(h, z), **flags, maximum="corrected" if corrected else "raw")


def _radam_official(h, z):
    below = "momentum" if h.pop("degenerated_to_sgd") else "skip"
    return aj.radam(**_common(h, z), **_decay(h, decoupled=True), below=below, eps_hat=True)


def _radam_torch(h, z):
    decay = _decay(h, decoupled=h.pop("decoupled_weight_decay", False))
    return aj.radam(**_common(h, z), **decay, below="momentum", eps_hat=True)


def _radam_optax(h, z):
    return aj.radam(**_common(h, z), threshold=h.pop("threshold"), below="momentum")


def _radam_fastai(h, z):
    del z
    b1, b2, rate, eps = h.pop("mom"), h.pop("sqr_mom"), h.pop("lr"), h.pop("eps")
    return aj.radam(rate, b1, b2, eps, weight_decay=h.pop("wd"), below="momentum")


def _restarts_authors(h, z):
    """AdamW, SGDW and their L2 forms in the authors' loop; the schedule comes from warm_restarts."""
    algorithm, rate, decay = h.pop("alg"), h.pop("LR"), h.pop("wd")
    epoch, period, factor = h.pop("nBatches"), h.pop("Te"), h.pop("Tmult")
    normalized = algorithm in ("ADAMW", "SGDW")
    restarts = aj.warm_restarts(
        rate,
        period,
        factor,
        steps_per_epoch=epoch,
        normalized_decay=decay if normalized else None,
        convention="authors",
        total_steps=len(z["lr"]),
    )
    options: dict[str, Any] = {}
    if algorithm in ("ADAM", "SGD"):
        options = {"l2": decay}
    elif not normalized:
        options = {"weight_decay": decay}
    rates: Any = restarts
    if h.pop("LRdec", "true") == "false":  # a constant learning rate, and decay without a factor
        rates, options = rate, {"weight_decay": recorded(z["decay"]), "decay": "fixed"}
    options.setdefault("decay", "schedule")
    if algorithm.startswith("SGD"):
        return aj.sgdw(rates, h.pop("momentum"), **options)
    return aj.adam(rates, eps_hat=True, **options)


def _restarts_paper(h, z):
    del z
    h.pop("eta")  # the words say: cosine restarts, T0=6, Tmult=2, T_cur=0 at the first step
    rate = h.pop("alpha")
    restarts = aj.warm_restarts(rate, first_period=6, multiplier=2)
    decay = {"weight_decay": h.pop("lam"), "decay": "schedule"}
    if "beta2" in h:
        return aj.adamw(restarts, h.pop("beta1"), h.pop("beta2"), h.pop("eps"), **decay)
    return aj.sgdw(restarts, h.pop("beta1"), schedule_inside=True, **decay)


def _clip(limit: float) -> optax.GradientTransformation:
    """PyTorch's clip_grad_norm: the factor min(1, limit / (norm + 1e-6))."""

    def clip(updates, params=None):
        factor = jnp.minimum(1.0, limit / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda g: factor * g, updates)

    return optax.stateless(clip)


def _one_cycle_fastai07(h, z):
    lengths, epoch, momenta = h.pop("nbs"), h.pop("batches_per_epoch"), tuple(h.pop("moms"))
    top, div, linear = h.pop("lr"), h.pop("div"), h.pop("lin_end")
    ramps = [(top / div, top), (top, top / div)]
    movements: list[Any] = [momenta, momenta[::-1]]
    if len(lengths) == 4:
        ramps.insert(1, (top, top))
        movements.insert(1, momenta[1])
    ramps.append((top / div, top / (100 * div) if linear else 0.0))
    movements.append(momenta[0])
    plan = [
        aj.Phase(epochs=n, learning_rate=r, momentum=m, shape="linear")
        for n, r, m in zip(lengths, ramps, movements, strict=True)
    ]
    if not linear:
        end = aj.Phase(
            epochs=lengths[-1], learning_rate=ramps[-1], momentum=momenta[0], shape="cosine"
        )
        plan[-1] = end
    carried = aj.phases(plan, steps_per_epoch=epoch)
    decay = {"l2" if h.pop("wd_loss") else "weight_decay": h.pop("wd")}
    eps, clip = h.pop("eps"), h.pop("clip")
    if h.pop("sgd", False):
        tx = aj.sgdw(carried, **decay)
    else:
        amsgrad = h.pop("amsgrad", False)
        tx = aj.adam(
            carried,
            b2=h.pop("beta2"),
            eps=eps,
            bias_correction="current",
            amsgrad=amsgrad,
            **decay,
        )
    return aj.compose(_clip(clip), tx) if clip else tx


def _one_cycle_fastai1(h, z):
    del z
    cycle = aj.one_cycle(
        h.pop("lr_max"),
        h.pop("total_steps"),
        "fastai_v1",
        momentum=tuple(h.pop("moms")),
        pct_start=h.pop("pct_start"),
        div=h.pop("div_factor"),
        final_div=h.pop("final_div"),
    )
    mask = None if h.pop("bn_wd") else "w"
    decay = {"weight_decay" if h.pop("true_wd") else "l2": h.pop("wd")}
    b2, eps = h.pop("b2"), h.pop("eps")
    return aj.adam(cycle, b2=b2, eps=eps, bias_correction="current", mask=mask, **decay)


def _one_cycle_fastai2(h, z):
    """The recorded learning rate and momentum: the library positions them in float32."""
    for told in ("lr", "mom", "pct", "div", "div_final"):
        h.pop(told)
    decay = {"weight_decay" if h.pop("decouple") else "l2": h.pop("wd")}
    rate, b1, b2 = recorded(z["lr"]), recorded(z["beta1"]), h.pop("sqr_mom")
    return aj.adam(rate, b1, b2, h.pop("eps"), bias_correction="current", **decay)


def _decay_schedule_fastai07(h, z):
    """fit(use_wd_sched=True): the recorded decay is that of the step, times the learning rate."""
    for told in [
        "lr",
        "wds",
        "cycle_len",
        "norm_wds",
        "mult",
        "batches_per_epoch",
        "epochs",
        "wds_sched_mult",
    ]:
        h.pop(told)
    assert h.pop("optimizer") == "Adam betas=(0.9,0.99) eps=1e-8"
    return aj.adamw(recorded(z["lr"]), b2=0.99, weight_decay=recorded(z["wd_out"]))


INNER: dict[str, Callable[[], optax.GradientTransformation]] = {
    "SGD lr=1e-3 momentum=0.9": lambda: aj.sgdw(1e-3, momentum=0.9),
    "torch Adam lr=0.01": lambda: aj.adam(0.01),
    "torch AdamW lr=0.01 weight_decay=0.1": lambda: aj.adamw(0.01, weight_decay=0.1),
    "official RAdam lr=0.01 betas=(0.9,0.99)": lambda: aj.radam(0.01, b2=0.99, eps_hat=True),
    "optax.adam(0.01)": lambda: aj.adam(0.01),
}


def _lookahead(h, z):
    del z
    inner = INNER[h.pop("inner")]()
    what = h.pop("pullback_momentum", "none")
    if h.pop("reset_state", False):
        what = "reset"
    period = h.pop("k") if "k" in h else h.pop("sync_period")
    alpha = h.pop("alpha") if "alpha" in h else h.pop("slow_step_size")
    if what == "none":
        return aj.compose(inner, aj.lookahead(sync_period=period, slow_step_size=alpha))
    return aj.lookahead(inner, sync_period=period, slow_step_size=alpha, inner_state=what)


def _ranger(h, z):
    tail = aj.lookahead(sync_period=h.pop("k"), slow_step_size=h.pop("alpha"))
    return aj.compose(_radam_fastai(h, z), tail)


TABLE: dict[tuple[str, str], Row] = {
    ("adam", "torch"): _adam,
    ("adam", "optax"): _adam,
    ("adam", "fairseq"): lambda h, z: _adam(h, z, eps_hat=True),
    ("adam", "keras"): lambda h, z: _adam(h, z, eps_hat=True),
    ("adamax", "torch"): lambda h, z: _adamax(h, z, decoupled=False),
    ("adamax", "optax"): lambda h, z: _adamax(h, z, decoupled=True),
    ("adamax", "keras"): lambda h, z: _adamax(h, z, decoupled=True, eps_inside_max=False),
    ("adamax", "fairseq"): lambda h, z: _adamax(h, z, decoupled=True, eps_inside_max=False),
    ("adamw", "torch"): _adamw,
    ("adamw", "optax"): _adamw,
    ("adamw", "fairseq"): lambda h, z: _adamw(h, z, eps_hat=True),
    ("adamwr", "loshchil"): _restarts_authors,
    ("adamwr", "paper"): _restarts_paper,
    ("sgdwr", "loshchil"): _restarts_authors,
    ("sgdwr", "paper"): _restarts_paper,
    ("amsgrad", "torch"): _amsgrad_torch,
    ("amsgrad", "optax"): _amsgrad_optax,
    ("amsgrad", "keras"): lambda h, z: aj.amsgrad(**_common(h, z), eps_hat=True),
    ("radam", "radam_official"): _radam_official,
    ("radam", "torch"): _radam_torch,
    ("radam", "optax"): _radam_optax,
    ("radam", "fastai2"): _radam_fastai,
    ("fastai_onecycle", "fastai07"): _one_cycle_fastai07,
    ("fastai_onecycle", "fastai1"): _one_cycle_fastai1,
    ("fastai_onecycle", "fastai2"): _one_cycle_fastai2,
    ("fastai_wdsched", "fastai07"): _decay_schedule_fastai07,
    ("lookahead", "lookahead_official"): _lookahead,
    ("lookahead", "pytorch_optimizer"): _lookahead,
    ("lookahead", "optax"): _lookahead,
    ("lookahead", "fastai2"): _ranger,
}

NOT_YET = {
    "adafactor": "adafactor",
    "ACProp": "acprop",
    "Adan": "adan",
    "diffGrad": "diffgrad",
    "PNM": "pnm",
    "AdaPNM": "adapnm",
    "GeneralizedSignSGD": "generalized_signsgd",
    "KOALA-V": "koala_v",
    "KOALA-M": "koala_m",
    "SGDClipGrad": "clipped_sgd",
    "SGDNormalized": "clipped_sgd",
    "Gadam": "gadam",
    "GadamX": "gadamx",
    "SWA": "average_iterates",
    "batch-norm recomputation": "refresh_batch_stats",
    "Padam": "padam",
    "AdamW8bit": "quantize_state",
    "SGD8bit": "quantize_state",
    "percentile clipping": "percentile_clipping",
    "block-wise dynamic quantization": "quantize_state",
    "4-bit quantizers": "quantize_state",
    "lanczos": "curvature",
    "slq": "curvature",
    "hutchinson": "curvature",
    "lanczos_mlp": "curvature",
    "r_med": "curvature",
    "preconditioned_sharpness": "curvature",
    "gradient_noise_scale": "curvature",
    "radam_variance": "curvature",
    "gradinit_first": "gradinit",
    "gradinit_trajectory": "gradinit",
    "lr_learner": "curvature",
    "batch_hessian_extremes": "curvature",
}
"""Systems whose public function does not exist yet, and the name it will have."""


def build(entry: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Any:
    """The public transformation that replays a trajectory entry.

    Raises:
      KeyError: a system, source or hyperparameter that the table does not know.
    """
    key = entry["system"], entry["source_key"]
    if key not in TABLE:
        raise KeyError(f"{entry['name']}: no row for the system and source {key}")
    left = dict(entry["hyperparameters"])
    if key == ("amsgrad", "torch"):  # torch.optim.AdamW and Adam differ by class, which notes tell
        left["decoupled"] = "decoupled decay" in entry["notes"]
    tx = TABLE[key](left, arrays)
    if left:
        raise KeyError(f"{entry['name']}: unknown hyperparameters {sorted(left)}")
    return tx
