"""config/ as one object: files read, presets laid over, everything validated and cross-checked."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, RootModel

from .assets import Asset
from .base import (
    NAME,
    NAME_RULE,
    ConfigError,
    Mistakes,
    Name,
    Strict,
    layers,
    merge,
    parse,
    parse_entries,
    read_yaml,
    require_known,
)
from .methods import Method
from .rates import Bench, Costs
from .references import Ref, check_references
from .settings import Backbone, Dataset, Latents, Protocol, Recipe, Sampler, Tokenizer
from .tables import Claim, Table

SECTIONS = ("assets", "settings", "methods", "tables")
"""Files that a preset may lay something over."""


class Files(Strict):
    assets: str
    settings: str
    methods: str = Field(description="folder; its files together name every method once")
    tables: str = Field(description="folder with one file per table or figure")
    claims: str
    costs: str


class Root(Strict):
    """config/config.yaml with a preset laid over it."""

    based_on: str | None = Field(default=None, description="a preset that this one is laid over")
    files: Files
    pathvars: dict[Name, str]
    seeds: list[int] = Field(min_length=1)
    claim_seeds: list[int] = Field(default=[], description="seeds behind the claims; empty: seeds")
    targets: Annotated[list[str] | Literal["all"], Ref("targets")] = Field(
        description="what is made unasked: stems of config/tables, claims, report; or all of these"
    )
    title: str = Field(description="heading of the report")
    command: str = Field(description="how to call the workflow, as the report prints it")
    weights: Literal["trained", "released"] = Field(
        default="trained", description="released: adopt published few-step models, and train nothing"
    )
    bench: Bench
    replace_recipes: Annotated[dict[str, str], Ref("recipes")] = Field(
        default={},
        description="pattern of recipes -> the recipe that methods take instead; the others are taken out",
    )
    overrides: dict[str, dict[str, Any]] = Field(
        default={}, description="laid over the files, by file; an entry that is null is taken out"
    )


class Parts(Strict):
    """config/settings.yaml."""

    datasets: dict[Name, Dataset]
    tokenizers: dict[Name, Tokenizer]
    latents: dict[Name, Latents]
    backbones: dict[Name, Backbone]
    samplers: dict[Name, Sampler]
    protocols: dict[Name, Protocol]
    recipes: dict[Name, Recipe]


class AssetsFile(RootModel[dict[Name, Asset]]):
    """config/assets.yaml."""


class MethodsFile(RootModel[dict[Name, Method]]):
    """A file of config/methods/."""


class ClaimsFile(Strict):
    """config/claims.yaml."""

    claims: list[Claim] = []


@dataclass(frozen=True)
class Config:
    root: Root
    assets: dict[str, Asset]
    parts: Parts
    raw_methods: dict[str, dict[str, Any]]
    methods: dict[str, Method]
    method_files: dict[str, str]
    """Where each method stands, for messages."""
    tables: dict[str, Table]
    claims: list[Claim]
    costs: Costs
    names: dict[str, Collection[str]]
    """Kind of entry -> the names there are, for references."""

    @property
    def claim_seeds(self) -> list[int]:
        return self.root.claim_seeds or self.root.seeds


def load(raw: Mapping[str, Any], base: Path = Path(), files: Iterable[str | Path] = ()) -> Config:
    """Validate the configuration that Snakemake merged from its config files.

    Args:
        raw: content of config/config.yaml, with a preset and the command line laid over it (`complete`).
        base: folder that relative file names refer to.
        files: the presets that Snakemake has read, to be read again: it lets the last of two equal keys win.

    Raises:
        ConfigError: one line for every mistake found, in all files, naming file and key.
    """
    return _Reader(base).load(raw, files)


class _Reader:
    """Reads and validates every file, and keeps what is wrong to the end."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.mistakes = Mistakes()

    def load(self, raw: Mapping[str, Any], files: Iterable[str | Path]) -> Config:
        for file in files:
            read_yaml(Path(file), mistakes=self.mistakes)
        for file in layers(raw):
            self._read(file)
        shown = "config/config.yaml or preset"
        try:
            self.root = root = parse(Root, raw, shown)
        except ConfigError as error:
            self.mistakes.add(*str(error).splitlines())
            self.mistakes.refuse()
            raise
        over = root.overrides
        for name in over:
            self._known(name, SECTIONS, "preset", "overrides")

        raw_assets = merge(self._read(root.files.assets), over.get("assets", {}))
        assets = parse_entries(AssetsFile, raw_assets, root.files.assets, self.mistakes).root
        raw_parts = merge(self._read(root.files.settings), over.get("settings", {}))
        raw_parts = {part: _present(entries) for part, entries in raw_parts.items()}
        raw_parts["recipes"] = self._recipes(raw_parts.get("recipes") or {})
        for backbone in (raw_parts.get("backbones") or {}).values():
            backbone.setdefault("kind", "lightningdit")
        parts = parse_entries(Parts, raw_parts, root.files.settings, self.mistakes, depth=2)
        raw_methods, method_files = self._methods(over.get("methods", {}))
        methods: dict[str, Method] = {}
        for name, entry in raw_methods.items():
            methods |= parse_entries(MethodsFile, {name: entry}, method_files[name], self.mistakes).root
        stems, tables = self._tables(over.get("tables", {}))
        claims = parse_entries(ClaimsFile, self._read(root.files.claims), root.files.claims, self.mistakes)
        costs = parse_entries(Costs, self._read(root.files.costs), root.files.costs, self.mistakes)

        names: dict[str, Collection[str]] = {part: list(entries) for part, entries in raw_parts.items()}
        names |= {"assets": list(raw_assets), "methods": list(raw_methods)}
        names |= {f"files of {name}": [file.name for file in asset.files] for name, asset in assets.items()}
        names["extractors"] = {protocol.extractor for protocol in parts.protocols.values()}
        names["targets"] = [*stems, "claims", "report", *(["all"] if root.targets == "all" else [])]
        checked = [(root, shown, ""), (AssetsFile(assets), root.files.assets, "")]
        checked += [(parts, root.files.settings, ""), (claims, root.files.claims, "")]
        checked += [(method, method_files[name], name) for name, method in methods.items()]
        checked += [(table, f"{root.files.tables}/{name}.yaml", "") for name, table in tables.items()]
        for model, file, key in [*checked, (costs, root.files.costs, "")]:
            check_references(model, file, key, names, self.mistakes)
        self.mistakes.refuse()
        self._check_parts(parts)
        self.mistakes.refuse()
        return Config(
            root, assets, parts, raw_methods, methods, method_files, tables, claims.claims, costs, names
        )

    def _read(self, file: str) -> dict[str, Any]:
        return read_yaml(self.base / file, file, self.mistakes)

    def _known(self, name: str, names: Iterable[str], file: str, key: str) -> bool:
        names = list(names)
        with self.mistakes.caught():
            require_known(name, names, file, key)
        return name in names

    def _recipes(self, recipes: dict[str, Any]) -> dict[str, Any]:
        """The recipes without those that are replaced."""
        for pattern in self.root.replace_recipes:
            if not any(fnmatch(name, pattern) for name in recipes):
                self.mistakes.add(f"preset: replace_recipes: no recipe is called {pattern!r}")
        return {name: recipe for name, recipe in recipes.items() if self._recipe(name) == name}

    def _recipe(self, name: str) -> str:
        """The recipe that takes the place of one; itself, if it is not replaced."""
        found = [to for pattern, to in self.root.replace_recipes.items() if fnmatch(name, pattern)]
        return name if not found or name in self.root.replace_recipes.values() else found[0]

    def _methods(self, over: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """Entries of every file of the folder with a preset laid over, and the file of each."""
        found: dict[str, Any] = {}
        files = dict.fromkeys(over, "preset")
        folder = self.root.files.methods
        for path in sorted((self.base / folder).glob("*.yaml")):
            shown = f"{folder}/{path.name}"
            for name, entry in self._read(shown).items():
                if name in found:
                    self.mistakes.add(f"{shown}: {name}: stands in {files[name]} too; rename one")
                else:
                    found[name], files[name] = entry, shown
        methods = _present(merge(found, over))
        for entry in methods.values():
            if isinstance(entry, dict) and isinstance(entry.get("recipe"), str):
                entry["recipe"] = self._recipe(entry["recipe"])
        return methods, files

    def _tables(self, over: Mapping[str, Any]) -> tuple[list[str], dict[str, Table]]:
        """Stems of all files, and the tables that the preset leaves."""
        folder = self.root.files.tables
        stems = [path.stem for path in sorted((self.base / folder).glob("*.yaml"))]
        for name in over:
            self._known(name, stems, "preset", "overrides.tables")
        merged = {name: self._merged(f"{folder}/{name}.yaml", over.get(name) or {}) for name in stems}
        tables = {}
        for name in stems:
            shown, raw = f"{folder}/{name}.yaml", merged[name]
            if not re.fullmatch(NAME, name):
                self.mistakes.add(f"{shown}: the file's {name!r} {NAME_RULE}")
            if name in over and over[name] is None:
                continue
            source = raw.get("rows_of")
            if source is not None and self._known(source, stems, shown, "rows_of"):
                if raw["rows"]:
                    self.mistakes.add(f"{shown}: rows and rows_of are both given; keep one")
                raw["rows"] = merged[source]["rows"]
            with self.mistakes.caught():
                tables[name] = parse(Table, raw, shown)
        return stems, tables

    def _merged(self, file: str, over: Mapping[str, Any]) -> dict[str, Any]:
        """A table with a preset laid over it, whose rows are a mapping from row id to what differs."""
        raw = self._read(file)
        rows, changes = raw.get("rows", []), over.get("rows", {})
        known = [row["id"] for row in rows if isinstance(row, dict) and "id" in row]
        for name in changes:
            self._known(name, known, "preset", f"overrides.tables of {file}")
        if isinstance(rows, list):
            rows = [
                merge(row, changes.get(row.get("id"), {})) if isinstance(row, dict) else row for row in rows
            ]
        return {**merge(raw, over), "rows": rows}

    def _check_parts(self, parts: Parts) -> None:
        """What is right in itself and does not fit together."""
        file = self.root.files.settings
        for name, latents in parts.latents.items():
            dataset = parts.datasets[latents.dataset]
            encoded = dataset.format == "latents-safetensors"
            if encoded and parts.tokenizers[latents.tokenizer].posterior == "moments":
                self.mistakes.add(
                    f"{file}: latents.{name}.tokenizer: posterior: moments needs images, but "
                    f"{latents.dataset} was encoded elsewhere; choose posterior: sample"
                )
            if latents.shards > dataset.images:
                self.mistakes.add(
                    f"{file}: latents.{name}.shards: {latents.shards} shards for {dataset.images} images"
                )
        for recipe in parts.recipes.values():
            classes = parts.datasets[parts.latents[recipe.latents].dataset].classes
            for name in recipe.protocols:
                protocol = parts.protocols[name]
                if protocol.labels == "balanced" and protocol.images % classes:
                    self.mistakes.add(
                        f"{file}: protocols.{name}.images: {protocol.images} balanced images "
                        f"do not divide into {classes} classes"
                    )


def _present(entries: Any) -> Any:
    """Named entries without those that a preset took out."""
    if not isinstance(entries, Mapping):
        return entries
    return {name: entry for name, entry in entries.items() if entry is not None}
