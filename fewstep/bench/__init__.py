"""Benchmarks of the stages, one file for each; see __main__.py."""
