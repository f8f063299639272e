"""From configuration to runs, cells, specs and paths. Pure: no torch, no Snakemake, no jobs.

The rules of workflow/ ask two kinds of question: from which files does X follow (paths), and on
what does X depend beside files (specs). Both are answered here, from config/ alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..config import dump
from ..config.base import require_known
from ..config.settings import Weights
from ..config.specs import CellKey
from .cells import Cells
from .costs import as_csv, as_text, costs
from .needs import needs
from .runs import BASE, Run
from .specs import spec

__all__ = ["BASE", "Plan", "Run"]


class Plan(Cells):
    """Paths, as strings relative to the working directory."""

    def path(self, text: str) -> str:
        """Expand <results> and the other path variables."""
        for name, value in self.config.root.pathvars.items():
            text = text.replace(f"<{name}>", value)
        return text

    def spec_text(self, stage: str, name: str) -> str:
        """Canonical JSON of a spec, without its last line feed."""
        return dump(spec(self, stage, name)).rstrip("\n")

    # Data and weights

    def record(self, asset: str) -> str:
        return self.path(f"<assets>/{asset}.json")

    def weights(self, weights: Weights | None) -> list[str]:
        """The file that leads to some weights: a model of ours, or an asset's record."""
        if weights is None:
            return []
        if weights.method is not None:
            return [self.model(weights.method)]
        assert weights.asset is not None
        return [self.record(weights.asset)]

    def source(self, latents: str) -> str:
        return self.record(self.parts.datasets[self.parts.latents[latents].dataset].asset)

    def tokenizer_weights(self, latents: str) -> list[str]:
        return self.weights(self.parts.tokenizers[self.parts.latents[latents].tokenizer].weights)

    def shards(self, latents: str) -> list[str]:
        count = self.parts.latents[latents].shards
        return [self.path(f"<latents>/{latents}/shard-{shard:05d}.tar") for shard in range(count)]

    def manifest(self, latents: str) -> str:
        return self.path(f"<latents>/{latents}/manifest.json")

    # Runs; in the rules' wildcards a run is method/variant

    def model(self, method: str, variant: str = BASE, seed: int = 0) -> str:
        return self.path(f"<results>/{method}/{variant}/{seed}/model.safetensors")

    def adopted_from(self, run: str) -> list[str]:
        published = self.runs[run].published
        return [self.record(published.asset)] if published else []

    def latents_of(self, run: str) -> str:
        return self.manifest(self.runs[run].recipe.latents)

    def normalisation_of(self, run: str) -> list[str]:
        """The manifest, where the tokenizer's own files do not say how its latents are normalised."""
        return [self.latents_of(run)] if self.runs[run].tokenizer.measured else []

    def teacher_of(self, run: str) -> list[str]:
        teacher = self.runs[run].teacher
        return [self.model(teacher)] if teacher else []

    def decoder_of(self, run: str) -> list[str]:
        return self.weights(self.runs[run].tokenizer.weights)

    # Evaluation

    def extractor(self, protocol: str) -> list[str]:
        return self.weights(self.parts.protocols[protocol].weights)

    def reference(self, protocol: str) -> list[str]:
        """Reference statistics: computed here, or the record of a published file."""
        if self.parts.protocols[protocol].stored:
            return self.published_reference(protocol)
        return [self.path(f"<results>/references/{protocol}.npz")]

    def published_reference(self, protocol: str) -> list[str]:
        return self.weights(self.parts.protocols[protocol].reference)

    def reference_latents(self, protocol: str) -> list[str]:
        latents = self.parts.protocols[protocol].reference_latents
        return [self.manifest(latents)] if latents else []

    def images_of(self, run: str, seed: str, cell: str, protocol: str) -> str:
        return self.path(f"<results>/{run}/{seed}/{cell}/{self.image_set(protocol)}.tar")

    def metrics(self, key: CellKey) -> str:
        return self.path(
            f"<results>/{key.method}/{key.variant}/{key.seed}/{key.sampler}-{key.steps}/{key.protocol}.json"
        )

    # Tables and figures

    def table_metrics(self, name: str) -> list[str]:
        if self.config.tables[name].kind not in ("table", "curve", "ranking", "price", "sweep"):
            return []
        return [self.metrics(key) for key in self.table_cells(name)]

    def table_images(self, name: str) -> list[str]:
        files = (
            self.images_of(
                f"{key.method}/{key.variant}", str(key.seed), f"{key.sampler}-{key.steps}", key.protocol
            )
            for key in self.picture_cells(name)
        )
        return list(dict.fromkeys(files))  # protocols may share their images

    def table_reference(self, name: str) -> list[str]:
        """Real points beside the sampled ones."""
        table = self.config.tables[name]
        protocols = self.table_protocols(name)[:1] if table.kind == "scatter" else []
        return [file for protocol in protocols for file in self.reference(protocol)]

    def table_curves(self, name: str) -> list[str]:
        if self.config.tables[name].kind != "training":
            return []
        return [
            self.path(f"<results>/{run.name}/{seed}/train.jsonl")
            for run in self.table_runs(name).values()
            for seed in self.table_seeds(self.config.tables[name], run)
        ]

    def parts_of(self, target: str) -> list[str]:
        """The files of one target."""
        if target == "report":
            return [self.path("<results>/report.html")]
        if target == "claims":
            suffixes = ["csv", "md"]
        else:
            suffixes = ["csv", "md"] if self.config.tables[target].kind == "table" else ["png", "csv"]
        return [self.path(f"<results>/{target}.{suffix}") for suffix in suffixes]

    def targets(self) -> list[str]:
        return [file for target in self.wanted for file in self.parts_of(target)]

    def asset_records(self) -> list[str]:
        """Records of everything from outside that the targets need."""
        return [self.record(asset) for asset in needs(self, self.wanted).assets]

    def cost_csv(self) -> str:
        """What the targets cost, as CSV; see plan/costs.py."""
        return as_csv(costs(self))

    def cost_table(self) -> str:
        """The same for a terminal."""
        return as_text(costs(self))

    def report_parts(self) -> list[str]:
        """What the report page is made of: the files of every target but itself."""
        return [file for target in self.wanted if target != "report" for file in self.parts_of(target)]

    # Wildcards

    def pattern(self, kind: str) -> str:
        """Regular expression that matches the names of one kind and nothing else."""
        tables = self.config.tables
        names: dict[str, Iterable[str]] = {
            "runs": self.runs,
            "trained": [name for name, run in self.runs.items() if not run.adopted],
            "adopted": [name for name, run in self.runs.items() if run.adopted],
            "assets": self.config.assets,
            "latents": self.parts.latents,
            "protocols": self.parts.protocols,
            "image_sets": self.image_sets,
            "tables": [name for name, table in tables.items() if table.kind == "table"],
            "figures": [name for name, table in tables.items() if table.kind != "table"],
        }
        if kind == "cells":
            return "(" + _alternatives(self.parts.samplers) + r")-\d+"
        require_known(kind, names, "workflow", "pattern")
        return _alternatives(names[kind])


def _alternatives(names: Iterable[str]) -> str:
    """Longest first; a pattern that matches nothing when there are no names."""
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) or "(?!)"
