"""Step time, compile time and memory of adamw_jax beside optax and torch.

Run `python -m benchmarks --help` from the root of the repository. The library never imports
this package, and `benchmarks.hlo` (what XLA made of a step) can be used without the rest.
"""
