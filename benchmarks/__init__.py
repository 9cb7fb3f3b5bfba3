"""Measure step time, compile time and memory of adamw_jax, optax and torch.

Run `python -m benchmarks --help` from the root of the repository. The library never imports
this package, and `benchmarks.hlo` (the kernels of a compiled step) can be used alone.
"""
