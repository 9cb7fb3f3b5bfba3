"""Made by tools/optimizer_exports.py: what ``scale_by_x`` takes, for editors and type checkers."""

# fmt: off
from typing import Any

from adamw_jax._core.compose import Composed
from adamw_jax._core.declare import ScalarOrSchedule
from adamw_jax._core.masks import Mask
from adamw_jax.direction._rules import ParameterRules

def scale_by_acprop(b1: ScalarOrSchedule = 0.9, b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-08, *, numerator: str = 'gradient', below: str = 'momentum',
    state_dtype: Any = None, amsgrad: bool = False, rectify: bool = False, eps_hat: bool = False,
    bias_correction: str = 'exact') -> Composed: ...

def scale_by_adabelief(b1: ScalarOrSchedule = 0.9, b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-16, eps_root: ScalarOrSchedule = 1e-16, *, nesterov: bool = False,
    state_dtype: Any = None, amsgrad: bool = False, rectify: bool = False, eps_hat: bool = False,
    bias_correction: str = 'exact') -> Composed: ...

def scale_by_adafactor(decay_rate: ScalarOrSchedule = 0.8, eps: ScalarOrSchedule | None = 1e-30,
    min_scale: ScalarOrSchedule = 0.001, clipping_threshold: ScalarOrSchedule | None = 1.0, *,
    multiply_by_parameter_scale: bool = True, max_scale: ScalarOrSchedule | None = None,
    min_dim_size_to_factor: int = 128, axes: Any = 'last', eps_form: str = 'added',
    factored: bool = True, decay_offset: int = 0, max_b2: ScalarOrSchedule | None = None,
    b2: ScalarOrSchedule | None = None, state_dtype: Any = None) -> Composed: ...

def scale_by_adam(b1: ScalarOrSchedule = 0.9, b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-08, eps_root: ScalarOrSchedule | None = None, mu_dtype: Any = None,
    *, nesterov: bool = False, cautious: bool = False, state_dtype: Any = None,
    amsgrad: bool = False, rectify: bool = False, eps_hat: bool = False,
    bias_correction: str = 'exact') -> Composed: ...

def scale_by_adamax(b1: ScalarOrSchedule = 0.9, b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-08, *, eps_inside_max: bool = True, amsgrad: bool = False,
    bias_correction: str = 'exact', state_dtype: Any = None) -> Composed: ...

def scale_by_adamw(b1: ScalarOrSchedule = 0.9, b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-08, eps_root: ScalarOrSchedule | None = None, mu_dtype: Any = None,
    *, nesterov: bool = False, cautious: bool = False, state_dtype: Any = None,
    amsgrad: bool = False, rectify: bool = False, eps_hat: bool = False,
    bias_correction: str = 'exact') -> Composed: ...

def scale_by_adan(b1: ScalarOrSchedule = 0.98, b2: ScalarOrSchedule = 0.92,
    b3: ScalarOrSchedule = 0.99, eps: ScalarOrSchedule = 1e-08, *,
    max_grad_norm: ScalarOrSchedule | None = None, restart_period: int | None = None,
    start: str = 'zero', paper_betas: bool = False, amsgrad: bool = False, rectify: bool = False,
    eps_hat: bool = False, bias_correction: str = 'exact', state_dtype: Any = None) -> Composed: ...

def scale_by_adapnm(b1: ScalarOrSchedule = 0.9, b2: ScalarOrSchedule = 0.999,
    b0: ScalarOrSchedule = 1.0, eps: ScalarOrSchedule = 1e-08, *, amsgrad: bool = True,
    rectify: bool = False, eps_hat: bool = False, bias_correction: str = 'exact',
    state_dtype: Any = None) -> Composed: ...

def scale_by_ademamix(b1: ScalarOrSchedule = 0.9, b2: ScalarOrSchedule = 0.999,
    b3: ScalarOrSchedule = 0.9999, alpha: ScalarOrSchedule = 5.0, eps: ScalarOrSchedule = 1e-08, *,
    alpha_warmup: int | None = None, b3_warmup: int | None = None, state_dtype: Any = None,
    amsgrad: bool = False, rectify: bool = False, eps_hat: bool = False,
    bias_correction: str = 'exact') -> Composed: ...

def scale_by_adopt(b1: ScalarOrSchedule = 0.9, b2: ScalarOrSchedule = 0.9999,
    eps: ScalarOrSchedule = 1e-06, *, clip: bool = True, limit: ScalarOrSchedule | None = None,
    state_dtype: Any = None) -> Composed: ...

def scale_by_amsgrad(b1: ScalarOrSchedule = 0.9, b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-08, eps_root: ScalarOrSchedule | None = None, mu_dtype: Any = None,
    bias_correction_mu: bool = True, bias_correction_nu: bool = True, *, maximum: str = 'raw',
    rectify: bool = False, eps_hat: bool = False, bias_correction: str = 'exact',
    state_dtype: Any = None) -> Composed: ...

def scale_by_diffgrad(b1: ScalarOrSchedule = 0.9, b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-08, *, variant: str = 'abs', amsgrad: bool = False,
    rectify: bool = False, eps_hat: bool = True, bias_correction: str = 'exact',
    state_dtype: Any = None) -> Composed: ...

def scale_by_gadam(b1: ScalarOrSchedule = 0.9, b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-08, eps_root: ScalarOrSchedule | None = None, mu_dtype: Any = None,
    *, nesterov: bool = False, cautious: bool = False, state_dtype: Any = None,
    amsgrad: bool = False, rectify: bool = False, eps_hat: bool = False,
    bias_correction: str = 'exact') -> Composed: ...

def scale_by_gadamx(b1: ScalarOrSchedule = 0.9, b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-08, partial: ScalarOrSchedule = 0.25, *, amsgrad: bool = True,
    rectify: bool = False, bias_correction: str = 'exact', state_dtype: Any = None) -> Composed: ...

def scale_by_generalized_signsgd(b1: ScalarOrSchedule = 0.9, b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-08, *, corrected: bool = False, state_dtype: Any = None,
    amsgrad: bool = False, rectify: bool = False, eps_hat: bool = False,
    bias_correction: str = 'exact') -> Composed: ...

def scale_by_koala_v(*, rules: ParameterRules | None = None, r: ScalarOrSchedule | None = None,
    alpha_r: ScalarOrSchedule = 0.9, target: ScalarOrSchedule = 0.0,
    weight_decay: ScalarOrSchedule | None = None, mask: Mask = None, stacked: Mask = None,
    per_leaf: bool = True, sigma: float = 0.1, q: ScalarOrSchedule = 1.0,
    decay_in_direction: bool = False) -> Composed: ...

def scale_by_lamb(b1: ScalarOrSchedule = 0.9, b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-06, eps_root: ScalarOrSchedule | None = None,
    weight_decay: ScalarOrSchedule | None = None, mask: Mask = None, *, correct: bool = True,
    trust_ratio_mask: Mask = None, min_weight_norm: ScalarOrSchedule | None = None,
    max_weight_norm: ScalarOrSchedule | None = None, min_ratio: ScalarOrSchedule | None = None,
    max_ratio: ScalarOrSchedule | None = None, amsgrad: bool = False, rectify: bool = False,
    eps_hat: bool = False, bias_correction: str = 'exact', rules: ParameterRules | None = None,
    state_dtype: Any = None) -> Composed: ...

def scale_by_laprop(b1: ScalarOrSchedule = 0.9, b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-15, *, state_dtype: Any = None, amsgrad: bool = False,
    rectify: bool = False, eps_hat: bool = False, bias_correction: str = 'exact') -> Composed: ...

def scale_by_lion(b1: ScalarOrSchedule = 0.9, b2: ScalarOrSchedule = 0.99, mu_dtype: Any = None, *,
    cautious: bool = False, state_dtype: Any = None) -> Composed: ...

def scale_by_mars(b1: ScalarOrSchedule = 0.95, b2: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-08, gamma: ScalarOrSchedule = 0.025, *,
    max_norm: ScalarOrSchedule | None = 1.0, state_dtype: Any = None, amsgrad: bool = False,
    rectify: bool = False, eps_hat: bool = False, bias_correction: str = 'exact') -> Composed: ...

def scale_by_nadam(b1: ScalarOrSchedule = 0.9, b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-08, *, momentum_decay: ScalarOrSchedule | None = 0.004,
    state_dtype: Any = None, amsgrad: bool = False, rectify: bool = False, eps_hat: bool = False,
    bias_correction: str = 'exact') -> Composed: ...

def scale_by_norm_adaptive_sgd(beta: ScalarOrSchedule = 0.9, floor: ScalarOrSchedule = 0.001, *,
    use_previous: bool = True) -> Composed: ...

def scale_by_normalized_sgd(momentum: ScalarOrSchedule | None = None, *, nesterov: bool = False,
    dampening: ScalarOrSchedule | None = None, per_leaf: bool = False,
    state_dtype: Any = None) -> Composed: ...

def scale_by_padam(b1: ScalarOrSchedule = 0.9, b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-08, partial: ScalarOrSchedule = 0.25, *, amsgrad: bool = True,
    rectify: bool = False, bias_correction: str = 'exact', state_dtype: Any = None) -> Composed: ...

def scale_by_pnm(b1: ScalarOrSchedule = 0.9, b0: ScalarOrSchedule = 1.0, *,
    state_dtype: Any = None) -> Composed: ...

def scale_by_radam(b1: ScalarOrSchedule = 0.9, b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-08, eps_root: ScalarOrSchedule | None = None,
    threshold: ScalarOrSchedule = 5.0, *, nesterov: bool = False, below: str = 'skip',
    amsgrad: bool = False, eps_hat: bool = False, bias_correction: str = 'exact',
    state_dtype: Any = None) -> Composed: ...

def scale_by_sgdw(momentum: ScalarOrSchedule | None = 0.9, *, nesterov: bool = False,
    dampening: ScalarOrSchedule | None = None, state_dtype: Any = None) -> Composed: ...
