"""Where every file stands: one template for each kind, for rules and plan alike, and the way back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ..common.device_time import FILE

OUTPUTS = {
    "fetch": {"record": "<assets>/{asset}.json"},
    "encode": {"shard": "<latents>/{latents}/shard-{shard}.tar"},
    "manifest": {"manifest": "<latents>/{latents}/manifest.json"},
    "text": {"text": "<latents>/text/{encoder}/{captions}/manifest.json"},
    "train": {
        "model": "<results>/{run}/{seed}/model.safetensors",
        "curve": "<results>/{run}/{seed}/train.jsonl",
    },
    "sample": {"images": "<results>/{run}/{seed}/{sampler}-{steps}/{images}.tar"},
    "images": {"npz": "<results>/{run}/{seed}/{sampler}-{steps}/{images}.npz"},
    "pictures": {"pngs": "<results>/{run}/{seed}/{sampler}-{steps}/{images}.pngs"},
    "score": {"metrics": "<results>/{run}/{seed}/{sampler}-{steps}/{protocol}.json"},
    "reference": {"statistics": "<results>/references/{protocol}.npz"},
    "bounds": {"bounds": "<results>/references/{table}.json"},
    "examples": {"examples": "<results>/examples/{table}.tar"},
    "export": {
        "lora": "<results>/{run}/{seed}/export/pytorch_lora_weights.safetensors",
        "target_embedder": "<results>/{run}/{seed}/export/target_embedder.safetensors",
        "one_file": "<results>/{run}/{seed}/export/one-file/pytorch_lora_weights.safetensors",
    },
    "pipeline": {"pipeline": "<results>/{run}/{seed}/pipeline/model_index.json"},
    "table": {"csv": "<results>/{table}.csv", "markdown": "<results>/{table}.md"},
    "figure": {"png": "<results>/{table}.png"},
    "claims": {"claims": "<results>/{claims}.csv", "claims_markdown": "<results>/{claims}.md"},
    "report": {"page": "<results>/report.html"},
}
"""Stage -> kind of file that it makes -> path, with path variables in <> and wildcards in {}.

A figure's csv and an adopted model are made by other stages, see `jobs.maker`.
"""
FILES = {kind: template for files in OUTPUTS.values() for kind, template in files.items()}
"""Kind of file -> path."""
MAKERS = {kind: stage for stage, files in OUTPUTS.items() for kind in files}

LOGS = {
    "train": "<logs>/train/{run}/{seed}.log",
    "sample": "<logs>/sample/{run}/{seed}/{sampler}-{steps}/{images}.log",
    "bounds": "<logs>/bounds/{table}.log",
    "score": "<logs>/score/{run}/{seed}/{sampler}-{steps}/{protocol}.log",
}
"""Stage -> its log, of those that the report leads to."""
TIME = f"<results>/{{run}}/{{seed}}/{FILE}"
"""Record of a training's time on its devices, which the training writes beside its model."""

SPECS = {
    "fetch": "{asset}",
    "encode": "{latents}",
    "text": "{encoder}/{captions}",
    "adopt": "{run}",
    "reembed": "{run}",
    "sampling": "{run}",
    "train": "{run}/{seed}",
    "bench": "bench",
    "export": "{run}",
    "pipeline": "{run}",
    "sample": "{run}/{sampler}-{steps}/{images}",
    "reference": "{protocol}",
    "bounds": "{table}",
    "examples": "{table}",
    "score": "{run}/{seed}/{sampler}-{steps}/{protocol}",
    "table": "{table}",
    "claims": "{claims}",
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
