"""The sources of the golden manifests once more, one leaf at a time in NumPy.

Each formula takes a source's hyperparameters under its own names, with its defaults, and nothing of
this library. ``s`` is the state of the leaf, ``t`` counts from 1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

Array = Any
State = dict[str, Any]
Formula = Callable[..., Array]


def average(s: State, name: str, value: Array, rate: float) -> Array:
    """One step of a moving average in the state."""
    s[name] = rate * s.get(name, 0.0) + (1 - rate) * value
    return s[name]


def adam(p, g, s, t, lr, b1, b2, eps, *, l2=0.0, wd=0.0, amsgrad=False, hat=False, power=1.0):
    """Adam with its usual options; ``hat`` adds eps before the correction."""
    g = g + l2 * p
    m, v = average(s, "m", g, b1), average(s, "v", g * g, b2)
    s["top"] = np.maximum(s.get("top", 0.0), v) if amsgrad else v
    c1, c2 = 1 - b1**t, math.sqrt(1 - b2**t)
    root = np.sqrt(s["top"])
    scale = (root + eps) ** power / c2 if hat else root / c2 + eps
    return p - lr * wd * p - lr * m / c1 / scale


def split(decoupled: bool, weight_decay: float) -> dict[str, float]:
    return {"wd" if decoupled else "l2": weight_decay}


def torch_adam(
    p, g, s, t, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False,
    maximize=False, decoupled_weight_decay=False,
):  # fmt: skip
    decay = split(decoupled_weight_decay, weight_decay)
    return adam(p, -g if maximize else g, s, t, lr, *betas, eps, amsgrad=amsgrad, **decay)


def torch_adamw(p, g, s, t, weight_decay=1e-2, **h):
    return torch_adam(p, g, s, t, weight_decay=weight_decay, decoupled_weight_decay=True, **h)


def fairseq_adam(
    p, g, s, t, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False
):
    return adam(p, g, s, t, lr, *betas, eps, wd=weight_decay, amsgrad=amsgrad, hat=True)


def keras_adam(
    p, g, s, t, learning_rate=1e-3, beta_1=0.9, beta_2=0.999, epsilon=1e-7, amsgrad=False,
    weight_decay=None,
):  # fmt: skip
    wd, rates = weight_decay or 0.0, (beta_1, beta_2)
    return adam(p, g, s, t, learning_rate, *rates, epsilon, wd=wd, amsgrad=amsgrad, hat=True)


def adamax(p, g, s, t, lr, b1, b2, eps, *, inside, l2=0.0, wd=0.0):
    g = g + l2 * p
    m = average(s, "m", g, b1)
    s["u"] = np.maximum(b2 * s.get("u", 0.0), np.abs(g) + (eps if inside else 0.0))
    return p - lr * wd * p - lr / (1 - b1**t) * m / (s["u"] + (0.0 if inside else eps))


def torch_adamax(p, g, s, t, lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
    return adamax(p, g, s, t, lr, *betas, eps, inside=True, l2=weight_decay)


def fairseq_adamax(p, g, s, t, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
    return adamax(p, g, s, t, lr, *betas, eps, inside=False, wd=weight_decay)


def paper_adamw(p, g, s, t, alpha, beta1, beta2, eps, lam, eta):
    return adam(p, g, s, t, eta * alpha, beta1, beta2, eps) - eta * lam * p


def paper_sgdw(p, g, s, t, alpha, beta1, lam, eta):
    s["m"] = beta1 * s.get("m", 0.0) + eta * alpha * g
    return p - s["m"] - eta * lam * p


def rho(t, b2):
    return 2 / (1 - b2) - 1 - 2 * t * b2**t / (1 - b2**t)


def rectifier(t, b2):
    limit, length = 2 / (1 - b2) - 1, rho(t, b2)
    return math.sqrt((length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length))


def radam(p, g, s, t, lr, b1, b2, eps, *, l2=0.0, wd=0.0, momentum=True, hat=True):
    long = rho(t, b2) >= 5
    decayed = adam(p, g, s, t, lr, b1, b2, eps, l2=l2, hat=hat) - p
    if long:
        return p - lr * wd * p + rectifier(t, b2) * decayed
    return p - lr * wd * p - lr * s["m"] / (1 - b1**t) if momentum else p


def official_radam(
    p, g, s, t, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, degenerated_to_sgd=False
):
    return radam(p, g, s, t, lr, *betas, eps, wd=weight_decay, momentum=degenerated_to_sgd)


def torch_radam(
    p, g, s, t, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0,
    decoupled_weight_decay=False,
):  # fmt: skip
    return radam(p, g, s, t, lr, *betas, eps, **split(decoupled_weight_decay, weight_decay))


def fastai_radam(p, g, s, t, lr, mom=0.9, sqr_mom=0.99, eps=1e-5, wd=0.0, decouple_wd=True):
    return radam(p, g, s, t, lr, mom, sqr_mom, eps, hat=False, **split(decouple_wd, wd))


def sgd(p, g, s, t, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
    g = g + weight_decay * p
    if momentum:
        s["m"] = momentum * s["m"] + (1 - dampening) * g if "m" in s else g
        g = g + momentum * s["m"] if nesterov else s["m"]
    return p - lr * g


def looked_ahead(inner: Formula, told: dict[str, Any]) -> Formula:
    """Lookahead of PyTorch's versions around a formula."""

    def formula(p, g, s, t, inner, k=5, alpha=0.8, pullback_momentum="none"):
        slow, kept = s.setdefault("slow", p), s.setdefault("kept", 0.0)
        p = inner_step(p, g, s, t, **told)
        if t % k:
            return p
        s["slow"] = slow + alpha * (p - slow)
        if pullback_momentum == "reset" and inner_step is sgd:
            s["m"] = 0.0 * s.get("m", 0.0)
        if pullback_momentum == "pullback":
            s["m"] = s["kept"] = alpha * s["m"] + (1 - alpha) * kept
        return s["slow"]

    inner_step = inner
    return formula


def rms(x):
    return np.sqrt(np.mean(x * x))


def second_moment(g, s, rate, eps):
    """Adafactor's, factored over the last two axes."""
    square = g * g + eps
    if g.ndim < 2:
        return average(s, "v", square, rate)
    rows = average(s, "rows", square.mean(-1), rate)[..., None]
    columns = average(s, "columns", square.mean(-2), rate)[..., None, :]
    return rows * columns / rows.mean(-2, keepdims=True)


def hf_adafactor(
    p, g, s, t, lr=None, eps=(1e-30, 1e-3), clip_threshold=1.0, decay_rate=-0.8, beta1=None,
    weight_decay=0.0, scale_parameter=True, relative_step=True, warmup_init=False,
):  # fmt: skip
    if relative_step:
        lr = min(1e-6 * t if warmup_init else 1e-2, 1 / math.sqrt(t))
    rate = lr * (max(eps[1], rms(p)) if scale_parameter else 1.0)
    u = g / np.sqrt(second_moment(g, s, 1 - t**decay_rate, eps[0]))
    u = rate * u / max(1.0, rms(u) / clip_threshold)
    return p - weight_decay * rate * p - (u if beta1 is None else average(s, "m", u, beta1))


def keras_adafactor(
    p, g, s, t, learning_rate=1e-3, beta_2_decay=-0.8, epsilon_1=1e-30, epsilon_2=1e-3,
    clip_threshold=1.0, relative_step=True,
):  # fmt: skip
    rate = max(epsilon_2, rms(p)) * min(learning_rate, 1 / math.sqrt(t))
    u = g / np.sqrt(second_moment(g, s, 1 - t**beta_2_decay, epsilon_1))
    return p - rate * u / max(1.0, rms(u) / clip_threshold)


def pnm_momentum(g, s, t, b1, b0):
    now, other = ("even", "odd") if t % 2 else ("odd", "even")
    m = average(s, now, g, b1**2)
    return ((1 + b0) * m - b0 * s.get(other, 0.0)) / math.hypot(1 + b0, b0)


def pnm(p, g, s, t, lr, betas=(0.9, 1.0), weight_decay=0.0, decoupled=True):
    wd, l2 = (weight_decay, 0.0) if decoupled else (0.0, weight_decay)
    return p - lr * wd * p - lr * pnm_momentum(g + l2 * p, s, t, *betas)


def adapnm(
    p, g, s, t, lr=1e-3, betas=(0.9, 0.999, 1.0), eps=1e-8, weight_decay=0.0, amsgrad=True,
    decoupled=True,
):  # fmt: skip
    (b1, b2, b0), wd = betas, weight_decay if decoupled else 0.0
    g = g if decoupled else g + weight_decay * p
    m, v = pnm_momentum(g, s, t, b1, b0), average(s, "v", g * g, b2)
    s["top"] = np.maximum(s.get("top", 0.0), v) if amsgrad else v
    scale = np.sqrt(s["top"] / (1 - b2**t)) + eps
    return p - lr * wd * p - lr / (1 - b1**t) * m / scale


def adan(
    p, g, s, t, lr=1e-3, betas=(0.98, 0.92, 0.99), eps=1e-8, weight_decay=0.0, no_prox=False,
    restarts=(),
):  # fmt: skip
    if t - 1 in restarts:
        s.clear()
        s["before"] = t - 1
    t, (b1, b2, b3) = t - s.get("before", 0), betas
    d = g - s.get("g", g)
    s["g"] = g
    m, v = average(s, "m", g, b1) / (1 - b1**t), average(s, "d", d, b2) / (1 - b2**t)
    n = average(s, "n", (g + b2 * d) ** 2, b3) / (1 - b3**t)
    step = lr * (m + b2 * v) / (np.sqrt(n) + eps)
    return p * (1 - lr * weight_decay) - step if no_prox else (p - step) / (1 + lr * weight_decay)


def acprop(
    p, g, s, t, lr=1e-3, betas=(0.9, 0.999), eps=1e-16, weight_decay=0.0, amsgrad=False,
    weight_decouple=True, fixed_decay=False, rectify=True, degenerated_to_sgd=True,
    momentum_update=False,
):  # fmt: skip
    b1, b2 = betas
    if weight_decouple:
        p = p * (1 - (1.0 if fixed_decay else lr) * weight_decay)
    else:
        g = g + weight_decay * p
    m = average(s, "m", g, b1)
    corrected = m / (1 - b1**t)
    entry, var = corrected if momentum_update else g, s.get("var", 0.0 * g)
    if t > 1 or amsgrad:
        var = var + eps
    if amsgrad:
        s["top"] = np.maximum(s.get("top", 0.0), var)
    if t == 1:
        step = corrected
    elif not rectify:
        top = s["top"] if amsgrad else var
        step = entry / (np.sqrt(top / (1 - b2 ** (t - 1))) + eps)
    elif rho(t, b2) >= 5:
        step = rectifier(t, b2) * math.sqrt(1 - b2**t) * entry / (np.sqrt(var) + eps)
    else:
        step = corrected * degenerated_to_sgd
    s["var"] = b2 * var + (1 - b2) * (g - m) ** 2
    return p - lr * step


def diffgrad(p, g, s, t, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, version=0):
    g = g + weight_decay * p
    d = s.get("g", 0.0) - g
    s["g"] = g
    friction = {
        0: lambda: 1 / (1 + np.exp(-np.abs(d))),
        1: lambda: 1 / (1 + np.exp(-d)),
        2: lambda: 9 / (1 + np.exp(-0.5 * np.abs(d))) - 4,
    }[version]()
    return p + friction * (adam(p, g, s, t, lr, *betas, eps, hat=True) - p)


def signsgd(
    p, g, s, t, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, use_bias_correction=False
):
    m = average(s, "m", g + weight_decay * p, betas[0])
    v = average(s, "v", m * m, betas[1])
    if use_bias_correction:
        m, v = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
    return p - lr * m / (np.sqrt(v) + eps)


def padam(
    p, g, s, t, lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=True,
    partial=0.25, decoupled_wd=False,
):  # fmt: skip
    decay = split(decoupled_wd, weight_decay)
    return adam(p, g, s, t, lr, *betas, eps, amsgrad=amsgrad, hat=True, power=2 * partial, **decay)


def averaged(formula: Formula) -> Formula:
    """The source's iterate average of a formula, kept as ``avg``."""

    def step(p, g, s, t, ia_start, ia_every=1, **h):
        p = formula(p, g, s, t, **h)
        if t > ia_start and (t - ia_start) % ia_every == 0:
            n = s["n"] = s.get("n", 0) + 1
            s["avg"] = p if n == 1 else s["avg"] + (p - s["avg"]) / n
        return p

    return step


def gadam(p, g, s, t, decoupled_wd=False, **h):
    return torch_adam(p, g, s, t, decoupled_weight_decay=decoupled_wd, **h)


def schedule_free(
    p, g, s, t, lr, betas, eps, weight_decay, r, weight_lr_power, rectify=False,
    warmup_steps=0, silent_sgd_phase=True,
):  # fmt: skip
    """Keeps x, y and z; the library computes x from the others."""
    (b1, b2), z, x = betas, s.setdefault("z", p), s.setdefault("avg", p)
    v = average(s, "v", g * g, b2) / (1 - b2**t)
    lr, adaptive = lr * min(t / max(warmup_steps, 1), 1), True
    if rectify:
        adaptive = rho(t, b2) > 4
        lr = lr * (rectifier(t, b2) if adaptive else float(not silent_sgd_phase))
    top = s["top"] = max(lr, s.get("top", 0.0))
    weight = t**r * top**weight_lr_power
    total = s["total"] = s.get("total", 0.0) + weight
    c = weight / total if total else 0.0
    z = s["z"] = z - lr * ((g / (v**0.5 + eps) if adaptive else g) + weight_decay * p)
    x = s["avg"] = (1 - c) * x + c * z
    return (1 - b1) * z + b1 * x


FORMULAS: dict[tuple[str, str], Formula] = {
    ("adam", "torch"): torch_adam,
    ("adam", "fairseq"): fairseq_adam,
    ("adam", "keras"): keras_adam,
    ("adamax", "torch"): torch_adamax,
    ("adamax", "fairseq"): fairseq_adamax,
    ("adamw", "torch"): torch_adamw,
    ("adamw", "fairseq"): fairseq_adam,
    ("adamwr", "paper"): paper_adamw,
    ("sgdwr", "paper"): paper_sgdw,
    ("amsgrad", "keras"): keras_adam,
    ("radam", "radam_official"): official_radam,
    ("radam", "torch"): torch_radam,
    ("radam", "fastai2"): fastai_radam,
    ("adafactor", "hf"): hf_adafactor,
    ("adafactor", "keras"): keras_adafactor,
    ("PNM", ""): pnm,
    ("AdaPNM", ""): adapnm,
    ("Adan", ""): adan,
    ("ACProp", ""): acprop,
    ("diffGrad", ""): diffgrad,
    ("GeneralizedSignSGD", ""): signsgd,
    ("Padam", ""): padam,
    ("Gadam", ""): averaged(gadam),
    ("GadamX", ""): averaged(padam),
    ("SWA", ""): averaged(sgd),
    ("AdamWScheduleFree", ""): schedule_free,
    ("RAdamScheduleFree", ""): functools.partial(schedule_free, rectify=True),
}


# Schedules.


def between(start, end, share, shape="cosine"):
    """A ramp at a share of its length."""
    return end + (start - end) * (
        (1 + math.cos(math.pi * share)) / 2 if shape == "cosine" else 1 - share
    )


def fastai2_cycle(total, lr, mom, pct, div, div_final):
    ends = ((lr / div, lr, lr / div_final), mom)
    rows = []
    for position in (i / total for i in range(total)):
        up, share = (
            position < pct,
            position / pct if position < pct else (position - pct) / (1 - pct),
        )
        rows.append([between(*(e[:2] if up else e[1:]), share) for e in ends])
    return np.asarray(rows).T


def fastai1_cycle(total, lr, moms, pct_start, div_factor, final_div):
    first, ends = int(total * pct_start), ((lr / div_factor, lr, lr / final_div), (*moms, moms[0]))
    rows = []
    for i in range(total):
        up, share = i < first, i / first if i < first else (i - first) / (total - first)
        rows.append([between(*(e[:2] if up else e[1:]), share) for e in ends])
    return np.asarray(rows).T


def phase_cycle(total, lr, moms, div, nbs, lin_end, batches_per_epoch):
    """fastai 0.7's phases, of any lengths."""
    high, low = moms
    last = (lr / div, lr / (100 * div)) if lin_end else (lr / div, 0.0)
    ramps = [((lr / div, lr), (high, low)), ((lr, lr / div), (low, high)), (last, (high, high))]
    if len(nbs) == 4:
        ramps.insert(1, ((lr, lr), (low, low)))
    ends, rows = np.cumsum(nbs) * batches_per_epoch, []
    first = phase = 0
    for i in range(total):
        while phase < len(nbs) - 1 and i >= ends[phase] - 1e-9:
            first, phase = i, phase + 1
        share = (i - first) / (nbs[phase] * batches_per_epoch)
        shape = "cosine" if phase == len(nbs) - 1 and not lin_end else "linear"
        rows.append(
            [between(*ramps[phase][0], share, shape), between(*ramps[phase][1], share, "linear")]
        )
    return np.asarray(rows).T


def torch_cycle(
    total, max_lr, pct_start=0.3, div_factor=25.0, final_div_factor=1e4, anneal_strategy="cos",
    three_phase=False, base_momentum=0.85, max_momentum=0.95, **_
):  # fmt: skip
    first, (high, low) = max_lr / div_factor, (max_momentum, base_momentum)
    least, peak = first / final_div_factor, pct_start * total - 1
    ramps = [(peak, first, max_lr, high, low), (total - 1, max_lr, least, low, high)]
    if three_phase:
        ramps[1:] = [
            (2 * peak, max_lr, first, low, high),
            (total - 1, first, least, high, high),
        ]
    shape, rows = "cosine" if anneal_strategy == "cos" else "linear", []
    for i in range(total):
        before = 0.0
        for end, *values in ramps:
            if i <= end or end == total - 1:
                share = (i - before) / (end - before)
                rows.append(
                    [between(*values[:2], share, shape), between(*values[2:], share, shape)]
                )
                break
            before = end
    return np.asarray(rows).T


def authors_schedule(total, nBatches, Te, Tmult, LRdec="true"):
    """Multiplier and period at each step of the AdamW authors' training script."""
    now, following, rows = 0.0, 1 + Te, []
    for i in range(total):
        if LRdec == "true":
            now = min(now + 1 / (Te * nBatches), 1.0)
            if now >= 1 and i // nBatches + 1 == following:
                now, Te = 0.0, Te * Tmult
                following += Te
        rows.append(((1 + math.cos(math.pi * now)) / 2 if LRdec == "true" else 1.0, Te))
    return np.asarray(rows).T


# Sources whose steps depend on all leaves.


def norm(tree):
    return math.sqrt(sum(np.sum(x * x) for x in tree.values()))


def clipped_sgd(p, g, s, t, lr, clipping_param=None, **h):
    """The momentum step over all leaves, shortened; with no limit it is as long as ``lr``."""
    u = {k: p[k] - sgd(p[k], g[k], s.setdefault(k, {}), t, lr=1.0, **h) for k in p}
    length = 1e-10 + norm(u)
    rate = lr / length if clipping_param is None else min(lr, clipping_param / length)
    return {k: p[k] - rate * u[k] for k in p}


def measured(p, g, s, h, loss, mean_square, top, low, direction):
    """KOALA's measurement: steps of the leaves, and the covariance after it."""
    s["r"] = h["alpha_r"] * s.get("r", 1.0) + (1 - h["alpha_r"]) * mean_square
    r, wd, largest = s["r"] if h["r"] is None else h["r"], h["weight_decay"], 0.0
    for k in p:
        if math.sqrt(np.sum(g[k] ** 2)) < 1e-9:
            continue
        e = g[k] + wd * p[k]
        square = np.sum(e * e)
        size = square * top + r
        factor = h["lr"] * (loss + 0.5 * wd * np.sum(p[k] ** 2)) / size
        largest = max(largest, square / size)
        s[k] = s.get(k, 0.0) - factor * low * e
        p[k] = p[k] - factor * top * (e if direction else g[k])
        s["mean", k] = 0.9 * s.get(("mean", k), 0.0) + 0.1 * p[k]
    return largest


KOALA = {"r": None, "alpha_r": 0.9, "weight_decay": 0.0, "lr": 1.0}


def koala_v(p, g, s, t, loss, mean_square, sigma=1.0, q=1.0, **h):
    top, p = s.get("P", sigma) + q, dict(p)
    largest = measured(p, g, s, KOALA | h, loss, mean_square, top, 0.0, False)
    s["P"] = top - top**2 * largest
    return p


def koala_m(p, g, s, t, loss, mean_square, sw=0.1, sv=0.1, sc=0.0, a=0.9, qw=0.01, qv=0.01, **h):
    apart = norm({k: s.get(("mean", k), 0.0) - p[k] for k in p}) / sum(x.size for x in p.values())
    s["qw"] = 0.9 * s.get("qw", qw) + 0.1 * apart
    p = {k: x + s.get(k, 0.0) for k, x in p.items()}
    s.update({k: a * s.get(k, 0.0) for k in p})
    move = np.asarray([[1.0, 1.0], [0.0, a]])
    cov = move @ s.get("P", np.asarray([[sw, sc], [sc, sv]])) @ move.T + np.diag([s["qw"], qv])
    largest = measured(p, g, s, KOALA | h, loss, mean_square, cov[0, 0], cov[1, 0], True)
    s["P"] = cov - cov @ np.diag([largest, 0.0]) @ cov.T
    return p
