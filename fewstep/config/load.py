"""config/ as one object: files read, presets laid over, everything validated and cross-checked."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, RootModel, model_validator

from .assets import Asset
from .backbones import Backbone, ClassNetwork, Clip, ConvAutoencoder, KlAutoencoder, Sd3
from .base import (
    NAME,
    NAME_RULE,
    ConfigError,
    Distinct,
    Mistakes,
    Name,
    Seed,
    Seeds,
    Strict,
    is_there,
    layers,
    merge,
    nearest,
    parse,
    parse_entries,
    read_yaml,
    require_known,
    shown,
)
from .inference import INFERRED, Inference
from .methods import INHERITED, Method
from .origins import SOMEWHERE, Origins
from .rates import Bench, Costs
from .references import Ref, check_references
from .settings import EXTRACTORS, PUBLISHED_IMAGES, Dataset, Latents, Protocol, Recipe, Sampler, Tokenizer
from .tables import DECIMALS, TABLE_COLUMNS, Claim, Table
from .text import SCORERS, AnyProtocol, LikelihoodProtocol, PromptProtocol, PromptSet, TextEncoder

PATHVARS = ("results", "logs", "assets", "latents")
"""Path variables of the rules."""
SECTIONS = ("assets", "settings", "methods", "tables")
"""Files that a preset may lay something over."""
PRESET = "preset"
"""What stands for the file of a method that only a preset has."""
OTHER_TARGETS = ("report", "plan", "bench")
"""Stems of files below <results> that are no tables."""


FileName = Annotated[str, Field(min_length=1)]


class Files(Strict):
    assets: FileName
    settings: FileName
    methods: FileName = Field(description="folder; its files together name every method once")
    tables: FileName = Field(description="folder with one file per table or figure")
    claims: FileName | None = Field(description="null: none")
    costs: FileName


class Root(Strict):
    """config/config.yaml with a preset laid over it."""

    based_on: str | None = Field(default=None, description="a preset that this one is laid over")
    files: Files
    pathvars: dict[Name, str]
    seeds: Seeds
    claim_seeds: Annotated[list[Seed], Distinct] = Field(
        default=[], description="seeds behind the claims; empty: seeds"
    )
    targets: Annotated[list[str] | Literal["all"], Ref("targets")] = Field(
        description="what is made unasked: stems of config/tables, claims, report; or all of these"
    )
    rows: Annotated[Literal["all"] | list[str], Ref("rows")] = Field(
        default=[],
        description="rows of tables, by id, that are made although they say by_name; or all of these",
    )
    title: str = Field(description="heading of the report")
    command: str = Field(description="how to call the workflow, as the report prints it")
    text: Literal["stored", "live"] = Field(
        default="stored",
        description="live: trainings encode their captions themselves, with the same result, and no store is "
        "kept on disk",
    )
    weights: Literal["trained", "released"] = Field(
        default="trained", description="released: adopt published few-step models, and train nothing"
    )
    container: str | None = Field(
        default=None, description="image with every package, for --software-deployment-method apptainer"
    )
    bench: Bench
    replace_recipes: Annotated[dict[str, str], Ref("recipes")] = Field(
        default={},
        description="pattern of recipes -> the recipe that methods take instead; the others are taken out",
    )
    overrides: dict[str, dict[str, Any]] = Field(
        default={}, description="laid over the files, by file; an entry that is null is taken out"
    )

    @model_validator(mode="after")
    def _paths(self) -> Root:
        for name in dict.fromkeys((*PATHVARS, *self.pathvars)):
            path = self.pathvars.get(name)
            if name not in PATHVARS:
                raise ValueError(f"pathvars.{name}: unknown key{nearest(name, PATHVARS)}")
            if path is None:
                raise ValueError(f"pathvars.{name}: is missing")
            if path in ("", ".") or path != os.path.normpath(path) or set(path) & set("{}<>*?[]\n"):
                raise ValueError(f"pathvars.{name}: {path!r} is not the plain path of a folder: results/mine")
        return self


class Parts(Strict):
    """config/settings.yaml."""

    datasets: dict[Name, Dataset]
    tokenizers: dict[Name, Tokenizer]
    latents: dict[Name, Latents]
    backbones: dict[Name, Backbone]
    text_encoders: dict[Name, TextEncoder] = {}
    prompts: dict[Name, PromptSet] = {}
    samplers: dict[Name, Sampler]
    protocols: dict[Name, AnyProtocol]
    recipes: dict[Name, Recipe]


class AssetsFile(RootModel[dict[Name, Asset]]):
    """config/assets.yaml."""


class MethodsFile(RootModel[dict[Name, Method]]):
    """A file of config/methods/."""


class ClaimsFile(Strict):
    """config/claims.yaml."""

    claims: list[Claim] = []


_ENTRIES: dict[str, tuple[type[BaseModel], ...]] = {
    "datasets": (Dataset,),
    "tokenizers": (Tokenizer,),
    "latents": (Latents,),
    "backbones": (ClassNetwork, Sd3, ConvAutoencoder, KlAutoencoder, Clip),
    "text_encoders": (TextEncoder,),
    "prompts": (PromptSet,),
    "samplers": (Sampler,),
    "protocols": (Protocol, PromptProtocol, LikelihoodProtocol),
    "recipes": (Recipe,),
}
"""Section of settings.yaml -> the models that say what an entry needs, of each kind."""


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
    origins: Origins
    """By which a mistake is told where it was made."""
    notes: list[str] = field(default_factory=list)
    """What was found in folders of images, a line for each data set that is inferred."""

    @property
    def claim_seeds(self) -> list[int]:
        return self.root.claim_seeds or self.root.seeds


def load(
    raw: Mapping[str, Any],
    base: Path = Path(),
    files: Iterable[str | Path] = (),
    command_line: Mapping[str, Any] | None = None,
) -> Config:
    """Validate the configuration that Snakemake merged from its config files.

    Args:
        raw: content of config/config.yaml, with a preset and the command line laid over it (`complete`).
        base: folder that relative file names refer to.
        files: the presets that Snakemake has read, to be read again: it lets the last of two equal keys win.
        command_line: what ``--config`` gave, which is in ``raw`` too.

    Raises:
        ConfigError: one line for every mistake found, in all files, naming file and key.
    """
    return _Reader(base).load(raw, files, command_line or {})


class _Reader:
    """Reads and validates every file, and keeps what is wrong to the end."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.mistakes = Mistakes()
        self.recipes: list[str] = []
        """All that there are, before some are replaced."""

    def load(
        self, raw: Mapping[str, Any], files: Iterable[str | Path], command_line: Mapping[str, Any]
    ) -> Config:
        under = layers(raw, self.base, self.mistakes)
        presets = [(self._name(Path(file)), Path(file)) for file in files]
        read = [(name, read_yaml(path, name, self.mistakes)) for name, path in presets]
        self.origins = Origins([*under, *read, ("--config", command_line)], raw)
        self.mistakes.locate = self.origins.locate
        try:
            self.root = root = parse(Root, raw, SOMEWHERE)
        except ConfigError as error:
            self.mistakes.add(*str(error).splitlines())
            self.mistakes.refuse()
            raise
        files_of = root.files.model_dump(exclude_none=True).items()
        absent = {key: path for key, path in files_of if not is_there(self.base / path)}
        for key, path in absent.items():
            self.mistakes.add(f"{SOMEWHERE}: files.{key}: there is no {shown(path)} in {self.base.resolve()}")
        if absent:
            self.mistakes.refuse()
        over = root.overrides
        for name in over:
            self._known(name, SECTIONS, SOMEWHERE, f"overrides.{name}")

        raw_assets = self._laid_over(root.files.assets, "assets", over, Asset)
        raw_parts = self._parts(over.get("settings", {}))
        raw_methods, method_files = self._methods(over.get("methods", {}))
        notes = self._infer(raw_assets, raw_parts, raw_methods)
        assets = parse_entries(AssetsFile, raw_assets, root.files.assets, self.mistakes).root
        parts = parse_entries(Parts, raw_parts, root.files.settings, self.mistakes, depth=2)
        methods: dict[str, Method] = {}
        for name, entry in raw_methods.items():
            methods |= parse_entries(MethodsFile, {name: entry}, method_files[name], self.mistakes).root
        file_of_claims = root.files.claims or "no claims"
        raw_claims = self._read(file_of_claims) if root.files.claims else {}
        claims = parse_entries(ClaimsFile, raw_claims, file_of_claims, self.mistakes)
        stems, tables = self._tables(over.get("tables", {}))
        claimed = {"claims", *(claim.target for claim in claims.claims)}
        for claim in claims.claims:
            if claim.target in (*stems, *OTHER_TARGETS):
                self.mistakes.add(
                    f"{file_of_claims}: {claim.id}.target: {claim.target!r} is the name of another "
                    "target; choose one of its own"
                )
        costs = parse_entries(Costs, self._read(root.files.costs), root.files.costs, self.mistakes)

        names: dict[str, Collection[str]] = {part: list(entries) for part, entries in raw_parts.items()}
        names |= {"assets": list(raw_assets), "methods": list(raw_methods)}
        names |= {f"files of {name}": asset.names for name, asset in assets.items()}
        names["extractors"] = [*EXTRACTORS, "identity", *SCORERS]
        names["targets"] = [*stems, *sorted(claimed), "report", *(["all"] if root.targets == "all" else [])]
        dear = [row.id for table in tables.values() for row in table.rows if row.by_name]
        names["rows"] = [*dear, *(["all"] if root.rows == "all" else [])]
        checked = [(root, SOMEWHERE, ""), (AssetsFile(assets), root.files.assets, "")]
        checked += [(parts, root.files.settings, ""), (claims, file_of_claims, "")]
        checked += [(method, method_files[name], name) for name, method in methods.items()]
        checked += [(table, f"{root.files.tables}/{name}.yaml", "") for name, table in tables.items()]
        for model, file, key in [*checked, (costs, root.files.costs, "")]:
            check_references(model, file, key, names, self.mistakes)
        self.mistakes.refuse()
        self._check_assets(assets)
        self._check_parts(parts)
        self.mistakes.refuse()
        return Config(
            root,
            assets,
            parts,
            raw_methods,
            methods,
            method_files,
            tables,
            claims.claims,
            costs,
            names,
            self.origins,
            notes,
        )

    def _infer(
        self, assets: dict[str, Any], parts: dict[str, dict[str, Any]], methods: dict[str, Any]
    ) -> list[str]:
        """Fill in what entries leave out; a line for each data set that was looked at."""
        files, kept = self.root.files, Path(self.root.pathvars["assets"])
        inference = Inference(assets, parts, methods, (files.assets, files.settings), kept)
        with self.mistakes.caught():
            inference.run()
            return inference.notes
        self.mistakes.refuse()  # all that is missing then would be told, too
        return []

    def _name(self, file: Path) -> str:
        """What messages call a preset: its path below the repository or the working directory, if there."""
        file = file.resolve()
        for folder in (self.base.resolve(), Path.cwd()):
            if file.is_relative_to(folder):
                return str(file.relative_to(folder))
        return str(file)

    def _read(self, file: str, *section: str) -> dict[str, Any]:
        """A file of config/; presets lay something over it below ``section``, if that is given."""
        content = read_yaml(self.base / file, file, self.mistakes)
        if section:
            self.origins.add(file, content, *section)
        return content

    def _known(self, name: Any, names: Iterable[str], file: str, key: str) -> bool:
        names = list(names)
        with self.mistakes.caught():
            require_known(name, names, file, key)
        return name in names

    def _mapping(self, value: Any, file: str, key: str) -> dict[str, Any]:
        """A value that must be a mapping; nothing in its place if it is not, or null."""
        if value is not None and not isinstance(value, Mapping):
            self.mistakes.add(f"{file}: {key}: must be a mapping, not {shown(value)}")
        return dict(value) if isinstance(value, Mapping) else {}

    def _laid_over(
        self, file: str, section: str, over: Mapping[str, Any], model: type[BaseModel]
    ) -> dict[str, Any]:
        """Named entries of a file with a preset laid over it."""
        known = self._read(file, section)
        return _present(self._changed(known, over.get(section, {}), f"overrides.{section}", model))  # type: ignore[no-any-return]

    def _changed(
        self, known: Mapping[str, Any], over: Mapping[str, Any], key: str, *models: type[BaseModel]
    ) -> dict[str, Any]:
        """Entries with a preset laid over them. One that is not there, nor complete, was to be another.

        Args:
            models: of the kinds of entries; complete is what has all that one of them requires.
        """
        needed = [
            {name for name, entry in model.model_fields.items() if entry.is_required()}
            - INFERRED.get(key.rpartition(".")[2], set())
            for model in models
        ]
        taken = {}
        for name, entry in over.items():
            complete = isinstance(entry, Mapping) and any(keys <= set(entry) for keys in needed)
            if complete or self._known(name, known, SOMEWHERE, f"{key}.{name}"):
                taken[name] = entry
        return merge(known, taken)  # type: ignore[no-any-return]

    def _parts(self, over: Mapping[str, Any]) -> dict[str, Any]:
        """The entries of settings.yaml with a preset laid over them, and recipes replaced."""
        file = self.root.files.settings
        found = {**self._read(file, "settings")}
        for part, changes in over.items():
            if part in _ENTRIES:
                key = f"overrides.settings.{part}"
                known, changes = found.get(part), self._mapping(changes, SOMEWHERE, key)
                if isinstance(known, Mapping):
                    found[part] = self._changed(known, changes, key, *_ENTRIES[part])
            else:
                self._known(part, _ENTRIES, SOMEWHERE, f"overrides.settings.{part}")
        parts = {part: _present(self._mapping(entries, file, part)) for part, entries in found.items()}
        parts["recipes"] = self._recipes(parts.get("recipes", {}))
        for part, kind in (("backbones", "lightningdit"), ("protocols", "feature-metrics")):
            for entry in parts.get(part, {}).values():
                if isinstance(entry, dict):
                    entry.setdefault("kind", kind)
        return parts

    def _recipes(self, recipes: dict[str, Any]) -> dict[str, Any]:
        """The recipes without those that are replaced."""
        found = Mistakes()
        for pattern, name in self.root.replace_recipes.items():
            key = f"replace_recipes.{pattern}"
            if not any(fnmatch(str(recipe), pattern) for recipe in recipes):
                found.add(
                    f"{SOMEWHERE}: {key}: no recipe is called {pattern!r}{nearest(pattern, recipes, '')}"
                )
            with found.caught():
                require_known(name, recipes, SOMEWHERE, key)
        if found:  # what follows would be told of every method
            with self.mistakes.caught():
                found.refuse()
            self.mistakes.refuse()
        self.recipes = list(recipes)
        return {name: recipe for name, recipe in recipes.items() if self._recipe(name) == name}

    def _recipe(self, name: Any) -> Any:
        """The recipe that takes the place of one; itself, if it is not replaced."""
        found = [to for pattern, to in self.root.replace_recipes.items() if fnmatch(str(name), pattern)]
        return name if not found or name in self.root.replace_recipes.values() else found[0]

    def _methods(self, over: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """Entries of every file of the folder with a preset laid over, and the file of each."""
        found: dict[str, Any] = {}
        files = dict.fromkeys(over, PRESET)
        self.origins.add(PRESET, {}, "methods")
        folder = self.root.files.methods
        for path in self._folder(folder, "methods"):
            name_of_file = f"{folder}/{path.name}"
            for name, entry in self._read(name_of_file, "methods").items():
                if name in found:
                    self.mistakes.add(f"{name_of_file}: {name} stands in {files[name]} too; rename one")
                else:
                    found[name], files[name] = entry, name_of_file
        methods = _present(self._changed(found, over, "overrides.methods", Method))
        for name, entry in methods.items():
            if isinstance(entry, dict) and isinstance(entry.get("recipe"), str):
                recipe = self._recipe(entry["recipe"])
                if recipe != entry["recipe"]:
                    self._known(entry["recipe"], self.recipes, files[name], f"{name}.recipe")
                entry["recipe"] = recipe
        return {name: _continued(methods, name) for name in methods}, files

    def _folder(self, folder: str, key: str) -> list[Path]:
        """The YAML files of a folder, in the order of their names."""
        found = sorted((self.base / folder).glob("*.yaml"))
        if not found:
            self.mistakes.add(f"{SOMEWHERE}: files.{key}: no folder {folder!r} with YAML files in it")
            self.mistakes.refuse()
        return found

    def _tables(self, over: Mapping[str, Any]) -> tuple[list[str], dict[str, Table]]:
        """Stems of all files and names that the preset adds, and the tables that it leaves."""
        folder = self.root.files.tables
        stems = [path.stem for path in self._folder(folder, "tables")]
        over, out = _without_patterns(over, stems)
        known = self._changed(dict.fromkeys(stems), over, "overrides.tables", Table)
        added = [name for name in known if name not in stems]
        stems += added
        changes = {
            name: self._mapping(over.get(name), SOMEWHERE, f"overrides.tables.{name}") for name in stems
        }
        merged = {
            name: self._added(f"{folder}/{name}.yaml", name, changes[name])
            if name in added
            else self._merged(f"{folder}/{name}.yaml", name, changes[name])
            for name in stems
        }
        tables = {}
        for name in stems:
            file, raw = f"{folder}/{name}.yaml", merged[name]
            if not re.fullmatch(NAME, name):
                self.mistakes.add(f"{file}: the file's {name!r} {NAME_RULE}")
            if name in (*OTHER_TARGETS, "claims"):
                self.mistakes.add(f"{file}: the file's name is that of another target; rename it")
            if name in out or (name in over and over[name] is None):
                continue
            source = raw.get("rows_of")
            if source is not None and self._known(source, stems, file, "rows_of"):
                if raw["rows"]:
                    self.mistakes.add(f"{file}: rows and rows_of are both given; keep one")
                raw["rows"] = merged[source]["rows"]
            if raw.get("metric") in tuple(DECIMALS):  # scores between 0 and 1
                raw.setdefault("tolerance", {"absolute": 0.01})
            with self.mistakes.caught():
                tables[name] = parse(Table, raw, file)
        return stems, tables

    def _added(self, file: str, name: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """A table that a preset adds, as if it stood in a file of the folder: its rows are a list."""
        self.origins.add(file, None, "tables", name)
        return {**content, "rows": content.get("rows", [])}

    def _merged(self, file: str, name: str, over: Mapping[str, Any]) -> dict[str, Any]:
        """A table with a preset laid over it, whose rows are a mapping from row id to what differs."""
        raw = self._read(file, "tables", name)
        rows = raw.get("rows", [])
        key = f"overrides.tables.{name}.rows"
        changes = self._mapping(over.get("rows"), SOMEWHERE, key)
        if isinstance(rows, list):
            ids = [row.get("id") if isinstance(row, dict) else None for row in rows]
            for row in changes:
                self._known(row, [name for name in ids if isinstance(name, str)], SOMEWHERE, f"{key}.{row}")
            rows = [
                merge(row, changes.get(name, {})) if isinstance(name, str) else row
                for name, row in zip(ids, rows, strict=True)
            ]
        return {**merge(raw, over), "rows": rows}

    def _check_assets(self, assets: Mapping[str, Asset]) -> None:
        """Refuse names of files that leave the folder of their asset."""
        for name, asset in assets.items():
            for number, path in enumerate(PurePosixPath(file.name) for file in asset.files):
                if path.is_absolute() or not path.parts or ".." in path.parts:
                    self.mistakes.add(
                        f"{self.root.files.assets}: {name}.files.{number}.name: {str(path)!r} must be a path "
                        f"inside of the asset's folder"
                    )

    def _check_parts(self, parts: Parts) -> None:
        """What is right in itself and does not fit together."""
        file = self.root.files.settings
        for name in parts.prompts:
            if name in parts.datasets:
                self.mistakes.add(f"{file}: prompts.{name}: a data set has that name; rename one")
        for name, latents in parts.latents.items():
            dataset = parts.datasets[latents.dataset]
            encoded = dataset.format == "latents-safetensors"
            if encoded and parts.tokenizers[latents.tokenizer].posterior == "moments":
                self.mistakes.add(
                    f"{file}: latents.{name}.tokenizer: posterior: moments needs images, but "
                    f"{latents.dataset} was encoded elsewhere; choose posterior: sample"
                )
            if latents.flip and dataset.captioned:
                self.mistakes.add(
                    f"{file}: latents.{name}.flip: a mirrored image is not what its caption says of left and "
                    f"right; set it to false"
                )
            if latents.shards > dataset.images:
                self.mistakes.add(
                    f"{file}: latents.{name}.shards: {latents.shards} shards for {dataset.images} images"
                )
        for name, protocol in parts.protocols.items():
            if name in TABLE_COLUMNS or name.startswith(("reported_", "ours_")):
                self.mistakes.add(
                    f"{file}: protocols.{name}: a table has a column of that name; rename the protocol"
                )
            if isinstance(protocol, PromptProtocol):
                prompts = parts.prompts[protocol.prompts].prompts
                if protocol.images % prompts:
                    self.mistakes.add(
                        f"{file}: protocols.{name}.images: {protocol.images} images do not divide into "
                        f"{prompts} prompts; give a multiple"
                    )
                continue
            if isinstance(protocol, LikelihoodProtocol):
                real = parts.datasets[parts.latents[protocol.real_latents].dataset].images
                if protocol.images > real:
                    self.mistakes.add(
                        f"{file}: protocols.{name}.images: {protocol.images}, but latents "
                        f"{protocol.real_latents} have {real}; lower it"
                    )
                continue
            real = PUBLISHED_IMAGES
            if protocol.reference_latents is not None:
                real = parts.datasets[parts.latents[protocol.reference_latents].dataset].images
            if "kid" in protocol.metrics and protocol.kid.size > real:
                self.mistakes.add(
                    f"{file}: protocols.{name}.kid.size: {protocol.kid.size}, but there are {real} real "
                    f"images to compare with; lower it"
                )
        for name, recipe in parts.recipes.items():
            guided = recipe.guidance.channels if recipe.guidance else None
            channels = parts.tokenizers[parts.latents[recipe.latents].tokenizer].shape[0]
            if guided is not None and guided > channels:
                self.mistakes.add(
                    f"{file}: recipes.{name}.guidance.channels: {guided}, but its latents have {channels}"
                )
            dataset = parts.datasets[parts.latents[recipe.latents].dataset]
            classes = dataset.classes
            if recipe.text_encoder is not None and not dataset.captioned:
                self.mistakes.add(
                    f"{file}: recipes.{name}.text_encoder: the images of {recipe.latents} have no captions"
                )
            for key in recipe.protocols:
                protocol = parts.protocols[key]
                if isinstance(protocol, PromptProtocol):
                    if recipe.text_encoder is None:
                        self.mistakes.add(
                            f"{file}: recipes.{name}.protocols: {key} has prompts, which need a text_encoder"
                        )
                elif isinstance(protocol, LikelihoodProtocol):
                    continue
                elif protocol.labels == "balanced" and protocol.images % classes:
                    self.mistakes.add(
                        f"{file}: protocols.{key}.images: {protocol.images} balanced images "
                        f"do not divide into {classes} classes"
                    )


def _without_patterns(over: Mapping[str, Any], names: Sequence[str]) -> tuple[dict[str, Any], set[str]]:
    """Changes of entries without what their patterns (``"*": null``) take out, and the names of that.

    A pattern takes out what is in the files and in presets below, which stand before it.
    """
    out: set[str] = set()
    for place, (pattern, content) in enumerate(over.items()):
        if "*" in pattern and content is None:
            out |= {pattern, *(name for name in [*names, *list(over)[:place]] if fnmatch(name, pattern))}
    return {name: content for name, content in over.items() if name not in out}, out


def _continued(methods: Mapping[str, Any], name: str, behind: tuple[str, ...] = ()) -> Any:
    """An entry with what it leaves to the one whose training it continues; ``behind`` it are those before."""
    entry = methods[name]
    first = entry.get("continues") if isinstance(entry, Mapping) else None
    if not isinstance(first, str) or not isinstance(methods.get(first), Mapping) or first in (*behind, name):
        return entry
    source = _continued(methods, first, (*behind, name))
    return merge({key: source[key] for key in INHERITED if key in source}, entry)


def _present(entries: Any) -> Any:
    """Named entries without those that a preset took out."""
    if not isinstance(entries, Mapping):
        return entries
    return {name: entry for name, entry in entries.items() if entry is not None}
