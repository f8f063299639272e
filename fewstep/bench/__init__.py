"""Benchmarks: throughput of the stages, and what a training step costs; see __main__.py."""
