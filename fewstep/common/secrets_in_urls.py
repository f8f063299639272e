"""Secrets in addresses: a configuration names an environment variable in their place, and messages hide them.

What a configuration says goes into specs, records and logs. So it may say ``https://host/file?token=${NAME}``
or ``https://user:${NAME}@host/file``, and only the request has the value of NAME.
"""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_QUERY = re.compile(
    r"(?i)([?&;](?:[\w.-]*(?:token|secret|passw|pwd|signature|credential|(?:api|access)[-_]?key)[\w.-]*"
    r"|sig|sas|key|jwt|auth|authorization)=)(?!\$\{\w+\}(?:[&;#\s]|$))([^&;#\s\"'<>]+)"
)
_USER = re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://)(?!(?:[\w.~-]+:)?\$\{\w+\}@)([^/?#\s@\"'<>]+)@")
_HEADER = re.compile(r"(?i)\b((?:bearer|basic)\s+)[\w.~+/=-]+")


def redacted(text: str, url: str = "") -> str:
    """The text without passwords, tokens and signatures of addresses and headers.

    Args:
        url: an address in the form above; the values of its variables are hidden too.
    """
    for name in _VARIABLE.findall(url):
        if value := os.environ.get(name):
            text = text.replace(value, f"${{{name}}}")
    text = _USER.sub(r"\1***@", _QUERY.sub(r"\1***", text))
    return _HEADER.sub(r"\1***", text)


def refuse_secrets(url: str) -> None:
    """Raise a ValueError if a secret is written out in an address."""
    if (shown := redacted(url)) != url:
        raise ValueError(
            f"{shown} has a secret where *** stands, which would be written to files: write ${{NAME}} in its "
            f"place, and set the environment variable NAME where fewstep.fetch runs"
        )


def with_secrets(url: str) -> tuple[str, str]:
    """The address with the values of its variables, without the user, and ``user:password`` ("" if none).

    Raises:
        ValueError: a variable is not set.
    """
    if missing := [name for name in _VARIABLE.findall(url) if not os.environ.get(name)]:
        raise ValueError(f"the environment variable {missing[0]} of this address is not set")
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    return _filled(parts._replace(netloc=host).geturl()), _filled(user)


def _filled(text: str) -> str:
    return _VARIABLE.sub(lambda found: os.environ[found[1]], text)
