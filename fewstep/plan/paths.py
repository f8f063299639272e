"""Where every file stands: one template for each kind, for rules and plan alike, and the way back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

FILES = {
    "record": "<assets>/{asset}.json",
    "shard": "<latents>/{latents}/shard-{shard}.tar",
    "manifest": "<latents>/{latents}/manifest.json",
    "model": "<results>/{run}/{seed}/model.safetensors",
    "curve": "<results>/{run}/{seed}/train.jsonl",
    "images": "<results>/{run}/{seed}/{sampler}-{steps}/{images}.tar",
    "metrics": "<results>/{run}/{seed}/{sampler}-{steps}/{protocol}.json",
    "statistics": "<results>/references/{protocol}.npz",
    "csv": "<results>/{table}.csv",
    "markdown": "<results>/{table}.md",
    "png": "<results>/{table}.png",
    "claims": "<results>/claims.csv",
    "claims_markdown": "<results>/claims.md",
    "page": "<results>/report.html",
}
"""Kind of file -> path, with path variables in <> and wildcards in {}."""

SPECS = {
    "fetch": "{asset}",
    "encode": "{latents}",
    "adopt": "{run}",
    "train": "{run}/{seed}",
    "bench": "bench",
    "sample": "{run}/{sampler}-{steps}/{images}",
    "reference": "{protocol}",
    "score": "{run}/{seed}/{sampler}-{steps}/{protocol}",
    "table": "{table}",
    "claims": "claims",
    "report": "report",
    "costs": "costs",
}
"""Stage -> name of its spec, below <results>/specs/STAGE/."""


def expand(template: str, pathvars: Mapping[str, str], **wildcards: str | int) -> str:
    """The path of a template."""
    template = template.format_map(wildcards)
    for name, value in pathvars.items():
        template = template.replace(f"<{name}>", value)
    return template


def pattern(template: str, constraints: Mapping[str, str]) -> re.Pattern[str]:
    """Regular expression of the paths of a template, a group for each wildcard."""
    pieces = re.split(r"\{(\w+)\}", template)
    return re.compile(
        "".join(
            f"(?P<{piece}>{constraints[piece]})" if number % 2 else re.escape(piece)
            for number, piece in enumerate(pieces)
        )
    )


def alternatives(names: Iterable[str]) -> str:
    """Longest first; a pattern that matches nothing when there are no names."""
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) or "(?!)"
