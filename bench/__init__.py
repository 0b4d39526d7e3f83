"""Benchmarks and instruments, beside the package and not part of it."""
