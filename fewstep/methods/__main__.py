"""Rewrite the table of methods in README.md: python -m fewstep.methods README.md."""

from __future__ import annotations

import sys
from pathlib import Path

from ..common.files import write_text
from . import parameter_classes

BEGIN, END = "<!-- methods: python -m fewstep.methods README.md -->", "<!-- end of methods -->"


def table() -> str:
    """A row for each method that trains a flow, by title."""
    lines = ["| method | objective | paper |", "| --- | --- | --- |"]
    flows = [item for item in parameter_classes().items() if item[1].kind == "flow"]
    for name, params in sorted(flows, key=lambda item: item[1].title.lower()):
        papers = f"arXiv {', '.join(params.papers)}" if params.papers else ""
        words = "; ".join(filter(None, [papers, params.note]))
        lines.append(f"| {params.title} | [`{name}`](fewstep/methods/{name}/loss.py) | {words} |")
    return "\n".join(lines) + "\n"


def rewritten(text: str) -> str:
    """``text`` with the table between the two markers.

    Raises:
        ValueError: a marker is missing.
    """
    before, begin, rest = text.partition(BEGIN + "\n")
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"README.md: needs the lines {BEGIN} and {END} around the table of methods")
    return before + begin + table() + end + after


if __name__ == "__main__":
    path = Path(sys.argv[1])
    write_text(path, rewritten(path.read_text(encoding="utf-8")))
