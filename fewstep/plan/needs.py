"""Which jobs the configured targets lead to: the DAG's content, without its edges."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..config.settings import Weights
from ..config.specs import CellKey
from .cells import Cells


@dataclass
class Needs:
    """What has to be there, each thing once, in the order it was found."""

    targets: list[str]
    assets: dict[str, None] = field(default_factory=dict)
    latents: dict[str, None] = field(default_factory=dict)
    models: dict[tuple[str, int], None] = field(default_factory=dict)
    """(run, seed)."""
    images: dict[tuple[str, int, str, str], str] = field(default_factory=dict)
    """(run, seed, cell, image set) -> a protocol that wants these images."""
    references: dict[str, None] = field(default_factory=dict)
    """Protocols whose reference is computed here."""
    cells: dict[CellKey, None] = field(default_factory=dict)


def needs(plan: Cells, targets: Iterable[str]) -> Needs:
    """Everything behind some targets: stems of config/tables, ``claims``, ``report``."""
    found = Needs(list(targets))
    walk = _Walk(plan, found)
    for target in found.targets:
        walk.target(target)
    return found


class _Walk:
    def __init__(self, plan: Cells, found: Needs):
        self.plan = plan
        self.found = found

    def target(self, name: str) -> None:
        if name == "report":  # made of the other targets
            return
        plan = self.plan
        if name == "claims":
            self.score(plan.claim_cells())
            return
        kind = plan.config.tables[name].kind
        if kind in ("grid", "scatter"):
            for key in plan.picture_cells(name):
                self.image(key)
                if kind == "scatter":
                    self.reference(key.protocol)
        elif kind == "training":
            for run in plan.table_runs(name).values():
                for seed in plan.table_seeds(plan.config.tables[name], run):
                    self.model(run.name, seed)
        else:
            self.score(plan.table_cells(name))

    def score(self, keys: Iterable[CellKey]) -> None:
        for key in keys:
            self.found.cells[key] = None
            self.image(key)
            self.reference(key.protocol)

    def reference(self, name: str) -> None:
        protocol = self.plan.parts.protocols[name]
        self.weights(protocol.weights)
        self.weights(protocol.reference)
        if not protocol.stored:
            self.found.references[name] = None
        if protocol.reference_latents is not None:
            self.latent(protocol.reference_latents)

    def image(self, key: CellKey) -> None:
        run = self.plan.run(key.method, key.variant)
        name = (run.name, key.seed, f"{key.sampler}-{key.steps}", self.plan.image_set(key.protocol))
        self.found.images.setdefault(name, key.protocol)
        self.model(run.name, key.seed)
        if run.tokenizer.measured:
            self.latent(run.recipe.latents)
        self.weights(run.tokenizer.weights)

    def model(self, name: str, seed: int) -> None:
        if (name, seed) in self.found.models:
            return
        self.found.models[name, seed] = None
        run = self.plan.runs[name]
        if run.published is not None:
            self.found.assets[run.published.asset] = None
            return
        self.latent(run.recipe.latents)
        if run.teacher is not None:
            self.weights(Weights(method=run.teacher))

    def latent(self, name: str) -> None:
        if name in self.found.latents:
            return
        self.found.latents[name] = None
        entry = self.plan.parts.latents[name]
        self.found.assets[self.plan.parts.datasets[entry.dataset].asset] = None
        self.weights(self.plan.parts.tokenizers[entry.tokenizer].weights)

    def weights(self, weights: Weights | None) -> None:
        if weights is None:
            return
        if weights.method is not None:
            self.model(self.plan.run(weights.method).name, 0)
        else:
            assert weights.asset is not None
            self.found.assets[weights.asset] = None
