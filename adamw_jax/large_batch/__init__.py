"""What large batches need: layer-wise trust ratios."""

from adamw_jax.large_batch.trust_ratio import scale_by_trust_ratio

__all__ = ["scale_by_trust_ratio"]
