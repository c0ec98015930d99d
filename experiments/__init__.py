"""Grids, tables and benchmarks: what uses gkd_jax and is no part of it."""
