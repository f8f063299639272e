"""The configuration: pydantic models of everything below config/. Needs no torch."""

from .base import ConfigError, Strict, digest, dump, merge, read_spec

__all__ = ["ConfigError", "Strict", "digest", "dump", "merge", "read_spec"]
