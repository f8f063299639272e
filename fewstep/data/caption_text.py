"""Captions as they come from outside: JSON objects, and text that an encoder can take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..config import ConfigError


def json_object(content: bytes, where: str) -> dict[str, Any]:
    """The JSON object that ``content`` is.

    Raises:
        ConfigError: it is none; ``where`` names it.
    """
    found: dict[str, Any] = _json(content, dict, "object", where)
    return found


def json_list(content: bytes, where: str) -> list[Any]:
    """The JSON list that ``content`` is; raises as `json_object`."""
    found: list[Any] = _json(content, list, "list", where)
    return found


def _json(content: bytes, kind: type, called: str, where: str) -> Any:
    try:
        found = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not UTF-8: byte 0x{content[error.start]:02x}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not JSON: {error}") from None
    if not isinstance(found, kind):
        raise ConfigError(f"{where}: must be a JSON {called}, not {type(found).__name__}")
    return found


def caption_of(content: Mapping[Any, Any], key: str | int, where: str) -> str:
    """The caption under ``key``.

    Raises:
        ConfigError: it is missing, no text, empty, or cannot be written as UTF-8; ``where`` names the object.
    """
    if key not in content:
        raise ConfigError(f"{where}: has no key {key!r}")
    caption = content[key]
    if not isinstance(caption, str):
        raise ConfigError(f"{where}: {key}: must be text, not {type(caption).__name__}")
    if not caption.strip():
        raise ConfigError(f"{where}: {key}: is empty")
    try:
        caption.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{where}: {key}: not UTF-8: {caption[error.start]!r} is half a character"
        ) from None
    return caption
