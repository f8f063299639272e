"""Runs: every method with every variant's changes applied, and all that they refer to resolved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..config.base import ConfigError, merge, parse, require_known
from ..config.load import Config, load
from ..config.methods import Method, Published, Variant
from ..config.networks import FlowNetwork
from ..config.objectives import LossParams
from ..config.settings import Backbone, Guidance, Recipe, Tokenizer, Train, Weights
from ..config.tables import Row
from .checks import check_backbone, check_loss, check_published

BASE = "base"


@dataclass(frozen=True)
class Run:
    """A method with one variant's changes; a seed makes it a training."""

    method: str
    variant: str
    entry: Method
    recipe: Recipe
    loss: LossParams
    train: Train
    guidance: Guidance | None
    backbone: Backbone
    tokenizer: Tokenizer
    published: Published | None
    """The weights that take the place of training."""

    @property
    def name(self) -> str:
        return f"{self.method}/{self.variant}"

    @property
    def adopted(self) -> bool:
        """Whether published weights take the place of training."""
        return self.published is not None

    @property
    def teacher(self) -> str | None:
        """The method that teaches the run and whose weights it starts from."""
        return None if self.adopted else named_teacher(self.entry, self.recipe)

    @property
    def taught(self) -> bool:
        """Whether the run learns from a teacher."""
        return self.teacher is not None

    @property
    def expanded(self) -> bool:
        """Whether the network has its velocity at the time condition 2 - t."""
        one_time = isinstance(self.backbone, FlowNetwork) and not self.backbone.target_time
        return one_time and self.loss.velocity_at_expanded_time


def named_teacher(entry: Method, recipe: Recipe) -> str | None:
    """The teacher of an entry in its recipe, whether or not published weights spare its training."""
    if isinstance(entry.teacher, str):
        return entry.teacher
    return recipe.teacher if entry.teacher else None


class Runs:
    """The configuration and the runs that it defines."""

    def __init__(self, raw: Mapping[str, Any], base: Path = Path()):
        self.config: Config = load(raw, base)
        self.parts = self.config.parts
        self._variants = self._collect_variants()
        self.runs: dict[str, Run] = {}
        for method, variant in self._variants:
            run = self._resolve(method, variant)
            self.runs[run.name] = run
        for run in self.runs.values():
            self._check_loss(run)

    def rows(self) -> Iterator[tuple[str, Row]]:
        """Table name and row, for every row of every table and figure."""
        for name, table in self.config.tables.items():
            for row in table.rows:
                yield name, row

    def run(self, method: str, variant: str = BASE) -> Run:
        """The run of that name.

        Raises:
            ConfigError: neither config/methods/ nor a table defines it.
        """
        require_known(method, self.config.methods, "config/methods", "method")
        variants = [run.variant for run in self.runs.values() if run.method == method]
        require_known(variant, variants, "config/tables", f"variant of {method}")
        return self.runs[f"{method}/{variant}"]

    def available(self, run: Run) -> bool:
        """Whether the run's weights may be had: with ``weights: released`` nothing is trained."""
        return run.adopted or self.config.root.weights == "trained"

    def seeds(self, run: Run, wanted: list[int]) -> list[int]:
        """A training has every seed; published weights, and what others build on, exist once."""
        return [0] if self.once(run) else wanted

    def once(self, run: Run) -> bool:
        return run.adopted or run.method in self.foundations

    @cached_property
    def foundations(self) -> set[str]:
        """Methods that others build on: teachers, tokenizers, feature extractors."""
        weights = [tokenizer.weights for tokenizer in self.parts.tokenizers.values()]
        weights += [protocol.weights for protocol in self.parts.protocols.values()]
        weights += [protocol.reference for protocol in self.parts.protocols.values()]
        teachers = {run.teacher for run in self.runs.values() if run.teacher}
        return teachers | {given.method for given in weights if given is not None and given.method}

    def network(self, weights: Weights | None) -> Backbone | None:
        """Backbone of a network that this workflow trains; None for published weights."""
        if weights is None or weights.method is None:
            return None
        return self.run(weights.method).backbone

    def _collect_variants(self) -> dict[tuple[str, str], Variant]:
        """Every (method, variant) that a table defines, beside the base of each method."""
        found: dict[tuple[str, str], Variant] = {(name, BASE): Variant() for name in self.config.methods}
        where: dict[tuple[str, str], str] = {}
        for table, row in self.rows():
            if row.method is None or row.set is None:
                continue
            key = (row.method, row.variant)
            place = f"{self.config.root.files.tables}/{table}.yaml: rows.{row.id}.set"
            if row.variant == BASE:
                raise ConfigError(f"{place}: what it changes needs a variant name other than {BASE!r}")
            if key in found and found[key] != row.set:
                raise ConfigError(f"{place}: variant {row.variant!r} is defined otherwise in {where[key]}")
            found[key] = row.set
            where[key] = place
        return found

    def _resolve(self, name: str, variant: str) -> Run:
        """Apply a variant's changes; its mistakes are reported under the variant's name."""
        changes = self._variants[name, variant].model_dump(exclude_unset=True)
        file, where = self._place(name, variant)
        method = parse(Method, merge(self.config.raw_methods[name], changes), file, where)
        recipe = self.parts.recipes[method.recipe]
        train = parse(Train, merge(recipe.train.model_dump(), method.train), file, where, "train")
        guidance = None
        if recipe.guidance is not None:
            merged = merge(recipe.guidance.model_dump(), method.guidance)
            guidance = parse(Guidance, merged, file, where, "guidance")
        elif method.guidance:
            raise ConfigError(f"{file}: {where}.guidance: recipe {method.recipe} has no guidance")
        teacher = named_teacher(method, recipe)
        if method.teacher and teacher is None:
            raise ConfigError(f"{file}: {where}.teacher: recipe {method.recipe} names no teacher")
        if teacher == name:
            raise ConfigError(f"{file}: {where}.teacher: {name} cannot teach itself; set it to false")
        if teacher is not None:
            require_known(teacher, self.config.methods, file, f"{where}.teacher")
        released = method.released if self.config.root.weights == "released" and variant == BASE else None
        published = method.weights or released
        for key, weights in (("weights", method.weights), ("released", method.released)):
            if weights is not None:
                check_published(self.config, weights, recipe, f"{file}: {where}.{key}")
        latents = self.parts.latents[recipe.latents]
        network = method.backbone or recipe.backbone
        check_backbone(self.config, network, recipe.latents)
        return Run(
            method=name,
            variant=variant,
            entry=method,
            recipe=recipe,
            loss=method.loss,
            train=train,
            guidance=guidance,
            backbone=self.parts.backbones[network],
            tokenizer=self.parts.tokenizers[latents.tokenizer],
            published=published,
        )

    def _place(self, method: str, variant: str) -> tuple[str, str]:
        """File and key that a run's mistakes are reported under."""
        if variant == BASE:
            return self.config.method_files[method], method
        return self.config.root.files.tables, f"{method}, variant {variant}"

    def _check_loss(self, run: Run) -> None:
        teachers = self._teachers(run, f"{self.config.method_files[run.method]}: {run.method}")
        file, where = self._place(run.method, run.variant)
        teacher = teachers[0].loss if teachers else None
        check_loss(run.loss, run.train, run.backbone, teacher, f"{file}: {where}.loss")

    def _teachers(self, run: Run, where: str) -> list[Run]:
        """The run's teacher, the teacher's own, and so on.

        Raises:
            ConfigError: they go in a circle.
        """
        line = [run]
        while (name := named_teacher(line[-1].entry, line[-1].recipe)) is not None:
            names = [each.method for each in line]
            if name in names:
                raise ConfigError(f"{where}.teacher: {' <- '.join([*names, name])} goes in a circle")
            line.append(self.run(name))
        return line[1:]
