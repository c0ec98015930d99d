"""Distillation as existing PyTorch projects do it: what the benchmark measures gkd_jax against.

The networks, losses, images and optimiser are those of gkd_jax, and the tests say so number by number; how they are
computed is what an experienced PyTorch user would write. Nothing here knows JAX. `worker` runs it in a process of its
own.
"""
