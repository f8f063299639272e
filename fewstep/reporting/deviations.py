"""What the source of a method lists under "Deviations from the paper"."""

from __future__ import annotations

import ast
import re
from pathlib import Path

METHODS = Path(__file__).parents[1] / "methods"


def deviations(loss: str) -> list[str]:
    """The items of that section of a loss's docstring; empty when there are none.

    The source is parsed, not imported. The section ends at the next line of the form ``Heading:`` that
    follows a blank line, or with the docstring.
    """
    path = METHODS / f"{loss}.py"
    if not path.is_file():
        return []
    lines = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()
    heading = re.compile(r"\W*deviations from (print|the papers?)\b", re.IGNORECASE)
    starts = [i for i, line in enumerate(lines) if heading.match(line)]
    if not starts:
        return []
    items: list[str] = []
    fresh = True
    for line in lines[starts[0] + 1 :]:
        text = line.strip()
        if fresh and items and re.fullmatch(r"[A-Z][^:.]*:", line):
            break
        if not text or re.fullmatch(r"[-=~]{3,}", text):
            fresh = True
            continue
        if re.match(r"[*-] ", text):
            items.append(text[2:])
        elif fresh:
            items.append(text)
        else:
            items[-1] += " " + text
        fresh = False
    return items
