"""The configuration: pydantic models of everything below config/. Needs no torch."""

from .base import ConfigError, Strict, digest, dump, merge, read_spec, read_spec_of

__all__ = ["ConfigError", "Strict", "digest", "dump", "merge", "read_spec", "read_spec_of"]
