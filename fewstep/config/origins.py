"""Which file a key of the configuration comes from, so that a mistake is told where it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SOMEWHERE = "config/config.yaml or preset"
"""What messages call a configuration that no file is known of: an outer workflow's, or a test's."""


class Origins:
    """The layers of the configuration, the lowest first, each by name and content.

    Args:
        layers: config/config.yaml, the presets laid over it, and the command line.
        given: all of them together.
    """

    def __init__(self, layers: Sequence[tuple[str, Mapping[str, Any]]], given: Mapping[str, Any]) -> None:
        self._layers = list(layers)
        self._given = given
        self._files: dict[str, tuple[tuple[str, ...], Mapping[str, Any] | None]] = {}

    def add(self, file: str, content: Mapping[str, Any] | None, *section: str) -> None:
        """Note a file that presets lay something over, below ``overrides`` and ``section``.

        ``content`` is None where there is no such file, and a preset has all of it.
        """
        self._files[file] = (section, content)

    def locate(self, line: str) -> str:
        """A line of a ConfigError (file: key: message) under the file that gives the key."""
        file, _, rest = line.partition(": ")
        key, colon, message = rest.partition(": ")
        section, content = self._files.get(file, ((), {}))
        if content is None:
            return self._in_preset(".".join(["overrides", *section]), key, rest)
        if not colon:
            return line
        if file == SOMEWHERE:
            name, reach = self._layer(key)
            return f"{name if reach else self._layers[0][0]}: {key}: {message}"
        if file not in self._files:
            return line
        below = ".".join(["overrides", *section, key])
        name, reach = self._layer(below)
        reach -= len(below) - len(key)
        own, _ = _reach(content, key)
        if reach > own or (reach == own == len(key)):
            return f"{name}: {below}: {message}"
        return line

    def _in_preset(self, place: str, key: str, rest: str) -> str:
        """A line about what only a preset has, at ``place``; it may begin with a key that is there."""
        name, reach = self._layer(f"{place}.{key}")
        return f"{name}: {place}{'.' if reach > len(place) + 1 else ': '}{rest}"

    def _layer(self, key: str) -> tuple[str, int]:
        """The last layer that has the most of a dotted key, with the value that counts; and how much."""
        _, counts = _reach(self._given, key)
        layers = [*self._layers[::-1], (SOMEWHERE, self._given)]
        found = [(name, *_reach(content, key)) for name, content in layers]
        name, reach, _ = max(found, key=lambda one: (one[1], isinstance(counts, Mapping) or one[2] == counts))
        return name, reach


def _reach(content: Any, key: str) -> tuple[int, Any]:
    """How much of a dotted key names something in ``content``, in characters; and what is there."""
    entries = content
    if isinstance(content, list):
        entries = {
            str(entry.get("id", number) if isinstance(entry, Mapping) else number): entry
            for number, entry in enumerate(content)
        }
    best: tuple[int, Any] = (0, content)
    for name, inner in entries.items() if isinstance(entries, Mapping) else ():
        if key == str(name):
            return len(key), inner
        if key.startswith(f"{name}."):
            length, value = _reach(inner, key[len(str(name)) + 1 :])
            best = max(best, (len(str(name)) + 1 + length, value), key=lambda found: found[0])
    return best
