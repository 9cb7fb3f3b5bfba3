"""KOALA: Kalman filters of the parameters, whose measurement is the loss.

Davtyan, Sameni, Cerkezi, Meishvili, Bielski & Favaro, KOALA: A Kalman Optimization Algorithm with
Loss Adaptivity, AAAI 2022, arXiv 2107.03331. ``loss_filter`` is KOALA-V, ``momentum_filter`` is
KOALA-M; both need the loss: ``tx.update(gradients, state, params, value=loss)``.

>>> [make().spec.kinds for make in (loss_filter, momentum_filter)]
['gradient -> direction', 'gradient -> update']
"""

from adamw_jax.kalman.loss_filter import LossFilterState, loss_filter
from adamw_jax.kalman.momentum_filter import MomentumFilterState, momentum_filter

__all__ = ["LossFilterState", "MomentumFilterState", "loss_filter", "momentum_filter"]
