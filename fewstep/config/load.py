"""config/ as one object: files read, presets laid over, everything validated and cross-checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, TypeAdapter

from .assets import Asset
from .base import ConfigError, Strict, merge, parse, parse_all, read_yaml, require_known
from .bench import Bench
from .costs import Costs
from .methods import Method
from .settings import Backbone, Dataset, Latents, Protocol, Recipe, Sampler, Tokenizer, Weights
from .tables import Claim, Row, Table


class Files(Strict):
    assets: str
    settings: str
    methods: str = Field(description="folder; its files together name every method once")
    tables: str = Field(description="folder with one file per table or figure")
    claims: str
    costs: str = "config/costs.yaml"


class Root(Strict):
    """config/config.yaml with a preset laid over it."""

    files: Files
    pathvars: dict[str, str]
    seeds: list[int] = Field(min_length=1)
    claim_seeds: list[int] = Field(default=[], description="seeds behind the claims; empty: seeds")
    targets: list[str] | Literal["all"] = Field(
        description="what is made unasked: stems of config/tables, claims, report; or all of these"
    )
    title: str = Field(description="heading of the report")
    command: str = Field(description="how to call the workflow, as the report prints it")
    weights: Literal["trained", "released"] = Field(
        default="trained", description="released: adopt published few-step models, and train nothing"
    )
    bench: Bench
    replace_recipes: dict[str, str] = {}
    overrides: dict[str, dict[str, Any]] = Field(
        default={}, description="laid over the files, by file; an entry that is null is taken out"
    )


class Parts(Strict):
    """config/settings.yaml."""

    datasets: dict[str, Dataset]
    tokenizers: dict[str, Tokenizer]
    latents: dict[str, Latents]
    backbones: dict[str, Backbone]
    samplers: dict[str, Sampler]
    protocols: dict[str, Protocol]
    recipes: dict[str, Recipe]


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

    @property
    def claim_seeds(self) -> list[int]:
        return self.root.claim_seeds or self.root.seeds


def load(raw: Mapping[str, Any], base: Path = Path()) -> Config:
    """Validate the configuration that Snakemake merged from its config files.

    Args:
        raw: content of config/config.yaml, with a preset and the command line laid over it.
        base: folder that relative file names refer to.

    Raises:
        ConfigError: one line for every mistake found, naming file and key.
    """
    root = parse(Root, dict(raw), "config/config.yaml or preset")
    over = root.overrides
    for name in over:
        require_known(name, ["assets", "settings", "methods", "tables"], "preset", "overrides")

    def file(name: str) -> tuple[str, dict[str, Any]]:
        path = getattr(root.files, name)
        return path, merge(read_yaml(base / path), over.get(name, {}))

    assets_file, raw_assets = file("assets")
    assets = parse_all(Asset, raw_assets, assets_file)
    settings_file, raw_parts = file("settings")
    raw_parts = {part: _present(entries) for part, entries in raw_parts.items()}
    for backbone in raw_parts.get("backbones", {}).values():
        backbone.setdefault("kind", "lightningdit")
    parts = parse(Parts, raw_parts, settings_file)
    _check_parts(parts, assets, settings_file)

    raw_methods, method_files = _methods(root.files.methods, base, over.get("methods", {}))
    methods = {}
    for name, entry in raw_methods.items():
        if "recipe" in entry:
            entry["recipe"] = root.replace_recipes.get(entry["recipe"], entry["recipe"])
        shown = method_files[name]
        method = methods[name] = parse(Method, entry, shown, name)
        require_known(method.recipe, parts.recipes, shown, f"{name}.recipe")
        if method.backbone is not None:
            require_known(method.backbone, parts.backbones, shown, f"{name}.backbone")
        for sampler in method.samplers.values():
            require_known(sampler, parts.samplers, shown, f"{name}.samplers")
    for name, recipe in parts.recipes.items():
        if recipe.teacher is not None:
            require_known(recipe.teacher, methods, settings_file, f"recipes.{name}.teacher")
    for name, tokenizer in parts.tokenizers.items():
        _check_weights(tokenizer.weights, assets, methods, settings_file, f"tokenizers.{name}.weights")
        if tokenizer.statistics_file is not None:
            assert tokenizer.weights is not None and tokenizer.weights.asset is not None
            files = [entry.name for entry in assets[tokenizer.weights.asset].files]
            require_known(
                tokenizer.statistics_file, files, settings_file, f"tokenizers.{name}.statistics_file"
            )
    for name, protocol in parts.protocols.items():
        _check_weights(protocol.weights, assets, methods, settings_file, f"protocols.{name}.weights")

    tables = {}
    table_files = sorted((base / root.files.tables).glob("*.yaml"))
    for name in over.get("tables", {}):
        require_known(name, [path.stem for path in table_files], "preset", "overrides.tables")
    for path in table_files:
        shown = f"{root.files.tables}/{path.name}"
        if over.get("tables", {}).get(path.stem, {}) is None:
            continue
        raw_table = _merge_table(read_yaml(path), over.get("tables", {}).get(path.stem, {}), shown)
        if (source := raw_table.get("rows_of")) is not None:
            require_known(source, [other.stem for other in table_files], shown, "rows_of")
            if raw_table["rows"]:
                raise ConfigError(f"{shown}: rows and rows_of are both given; keep one")
            other = read_yaml(path.with_stem(source))
            raw_table["rows"] = _merge_table(other, over.get("tables", {}).get(source) or {}, shown)["rows"]
        tables[path.stem] = parse(Table, raw_table, shown)
        for row in tables[path.stem].rows:
            _check_row(row, methods, parts, shown)
    for target in [] if root.targets == "all" else root.targets:
        require_known(
            target,
            [*(path.stem for path in table_files), "claims", "report"],
            "config/config.yaml",
            "targets",
        )

    raw_claims = read_yaml(base / root.files.claims).get("claims", [])
    claims = [
        parse(Claim, claim, root.files.claims, f"claims.{index}") for index, claim in enumerate(raw_claims)
    ]
    for claim in claims:
        for cell in [claim.left, *claim.right]:
            where = f"claims.{claim.id}"
            require_known(cell.method, methods, root.files.claims, f"{where}.method")
            require_known(cell.sampler, parts.samplers, root.files.claims, f"{where}.sampler")
    costs = parse(Costs, read_yaml(base / root.files.costs), root.files.costs)
    _check_costs(costs, assets, parts, root.files.costs)
    return Config(root, assets, parts, raw_methods, methods, method_files, tables, claims, costs)


def _methods(
    folder: str, base: Path, over: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Entries of every file of the folder with a preset laid over, and the file of each.

    Raises:
        ConfigError: two files hold one name, or the preset changes a method that no file holds.
    """
    found: dict[str, Any] = {}
    files: dict[str, str] = {}
    for path in sorted((base / folder).glob("*.yaml")):
        for name, entry in read_yaml(path).items():
            shown = f"{folder}/{path.name}"
            if name in found:
                raise ConfigError(f"{shown}: {name}: stands in {files[name]} too; rename one")
            found[name], files[name] = entry, shown
    for name in over:
        if name not in found:
            files[name] = "preset"
    return _present(merge(found, over)), files


def _check_parts(parts: Parts, assets: Mapping[str, Asset], file: str) -> None:
    for name, dataset in parts.datasets.items():
        require_known(dataset.asset, assets, file, f"datasets.{name}.asset")
    for name, latents in parts.latents.items():
        require_known(latents.dataset, parts.datasets, file, f"latents.{name}.dataset")
        require_known(latents.tokenizer, parts.tokenizers, file, f"latents.{name}.tokenizer")
        encoded = parts.datasets[latents.dataset].format == "latents-safetensors"
        if encoded and parts.tokenizers[latents.tokenizer].posterior == "moments":
            raise ConfigError(
                f"{file}: latents.{name}.tokenizer: posterior: moments needs images, but "
                f"{latents.dataset} was encoded elsewhere; choose posterior: sample"
            )
        images = parts.datasets[latents.dataset].images
        if latents.shards > images:
            raise ConfigError(f"{file}: latents.{name}.shards: {latents.shards} shards for {images} images")
    for name, protocol in parts.protocols.items():
        if protocol.reference_latents is not None:
            require_known(
                protocol.reference_latents, parts.latents, file, f"protocols.{name}.reference_latents"
            )
        if protocol.reference is not None and protocol.reference.asset is not None:
            require_known(protocol.reference.asset, assets, file, f"protocols.{name}.reference.asset")
    for name, recipe in parts.recipes.items():
        where = f"recipes.{name}"
        require_known(recipe.latents, parts.latents, file, f"{where}.latents")
        require_known(recipe.backbone, parts.backbones, file, f"{where}.backbone")
        classes = parts.datasets[parts.latents[recipe.latents].dataset].classes
        for protocol_name in recipe.protocols:
            require_known(protocol_name, parts.protocols, file, f"{where}.protocols")
            protocol = parts.protocols[protocol_name]
            if protocol.labels == "balanced" and protocol.images % classes:
                raise ConfigError(
                    f"{file}: protocols.{protocol_name}.images: {protocol.images} balanced images "
                    f"do not divide into {classes} classes"
                )


def _check_costs(costs: Costs, assets: Mapping[str, Asset], parts: Parts, file: str) -> None:
    names: dict[str, Iterable[str]] = {
        "encode": parts.tokenizers,
        "decode": parts.tokenizers,
        "train": parts.backbones,
        "forward": parts.backbones,
        "score": {protocol.extractor for protocol in parts.protocols.values()},
        "assets": assets,
    }
    for key, allowed in names.items():
        for name in getattr(costs, key):
            require_known(name, allowed, file, key)


def _check_weights(
    weights: Weights | None, assets: Mapping[str, Asset], methods: Iterable[str], file: str, key: str
) -> None:
    if weights is None:
        return
    if weights.method is not None:
        require_known(weights.method, methods, file, f"{key}.method")
        return
    assert weights.asset is not None
    check_file(weights.asset, weights.file, assets, file, key)


def check_file(asset: str, name: str | None, assets: Mapping[str, Asset], file: str, key: str) -> None:
    """Refuse an asset, or a file of it, that config/assets.yaml does not have."""
    require_known(asset, assets, file, f"{key}.asset")
    if name is None:
        raise ConfigError(f"{file}: {key}.file: name the file of asset {asset!r}")
    require_known(name, [entry.name for entry in assets[asset].files], file, f"{key}.file")


def _check_row(row: Row, methods: Mapping[str, Method], parts: Parts, file: str) -> None:
    if row.method is None:
        return
    require_known(row.method, methods, file, f"rows.{row.id}.method")
    samplers = row.sampler if isinstance(row.sampler, dict) else {0: row.sampler}
    for sampler in samplers.values():
        if sampler is not None:
            require_known(sampler, parts.samplers, file, f"rows.{row.id}.sampler")


def _merge_table(raw: dict[str, Any], over: dict[str, Any], file: str) -> dict[str, Any]:
    """Lay a preset over a table; its rows are a mapping from row id to what differs."""
    rows = dict(over.get("rows", {}))
    merged: dict[str, Any] = merge(raw, {key: value for key, value in over.items() if key != "rows"})
    for name in rows:
        require_known(
            name, [row["id"] for row in raw.get("rows", [])], "preset", f"overrides.tables of {file}"
        )
    merged["rows"] = [merge(row, rows.get(row.get("id"), {})) for row in raw.get("rows", [])]
    return merged


def _present(entries: Any) -> Any:
    """Named entries without those that a preset took out."""
    if not isinstance(entries, Mapping):
        return entries
    return {name: entry for name, entry in entries.items() if entry is not None}


def schemas() -> dict[str, dict[str, Any]]:
    """JSON schemas of the configuration files, for editors; by file stem below workflow/schemas."""
    return {
        "config": Root.model_json_schema(),
        "assets": TypeAdapter(dict[str, Asset]).json_schema(),
        "settings": Parts.model_json_schema(),
        "methods": TypeAdapter(dict[str, Method]).json_schema(),
        "table": Table.model_json_schema(),
        "claims": TypeAdapter(dict[str, list[Claim]]).json_schema(),
        "costs": Costs.model_json_schema(),
    }
