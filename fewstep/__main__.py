"""List the commands: python -m fewstep."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent
TYPED = ("bench", "config", "generate", "methods", "score")
"""Commands that need no spec."""


def commands() -> Iterator[tuple[str, str]]:
    """Name and first line of documentation of each module that can be run; read, not imported."""
    for path in sorted([*PACKAGE.glob("*.py"), *PACKAGE.glob("*/__main__.py")]):
        text = path.read_text(encoding="utf-8")
        if "__main__" in text and path != Path(__file__):
            name = path.parent.name if path.stem == "__main__" else path.stem
            yield name, (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]


def main() -> None:
    """Print the commands, one a line: first those that are typed, then the stages of the workflow."""
    print("Each explains itself with --help. These are for you:\n")
    found = sorted(commands(), key=lambda command: (command[0] not in TYPED, command[0]))
    for place, (name, summary) in enumerate(found):
        if place == len(TYPED):
            print("\nThe workflow calls these, with a spec that it writes:\n")
        print(f"python -m fewstep.{name:10} {summary}")


if __name__ == "__main__":
    main()
