"""Measured speed, each against a reference and a physical limit; see docs/benchmarks.md."""
