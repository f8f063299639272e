"""What data sets, tokenizers and networks leave out, filled in from a folder of images on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.image_folders import ImageFolder, look_into
from .base import ConfigError, nearest
from .settings import Dataset

INFERRED = {
    "datasets": {"format", "resolution", "classes", "images"},
    "tokenizers": {"shape"},
    "backbones": {"shape", "classes"},
}
"""Section of settings.yaml -> the keys that an entry may leave out."""
LATENTS = {"pixels": (None, 1), "sd-vae": (4, 8), "vavae": (32, 16)}
"""Kind of tokenizer -> channels of its latents (None: the images'), and pixels of a side to one of theirs."""
CLASS_NETWORKS = ("lightningdit", "mlp", "unet", "get", "imf")
"""Kinds of networks whose condition is a class."""
Entries = dict[str, Any]


class Inference:
    """Fills in raw entries before they are validated.

    Args:
        parts: sections of settings.yaml; their entries are replaced by complete ones.
        files: names of the files assets and settings, for messages.
        kept: folder for what a long look found.
    """

    def __init__(
        self, assets: Entries, parts: dict[str, Entries], methods: Entries, files: tuple[str, str], kept: Path
    ) -> None:
        self._assets = assets
        self._parts = parts
        self._methods = methods
        self._assets_file, self._settings_file = files
        self._kept = kept
        self.notes: list[str] = []
        """What was found, a line for each data set."""

    def run(self) -> None:
        """Fill in all that is left out and can be found.

        Raises:
            ConfigError: a folder that is missing or holds something else, or images of several sizes.
        """
        for name, entry in self._entries("datasets"):
            asset = _named(self._assets, entry.get("asset"))
            if asset.get("kind") == "local" and self._open("datasets", entry):
                self._parts["datasets"][name] = self._dataset(name, entry, asset)
        for name, entry in self._entries("tokenizers"):
            if self._open("tokenizers", entry):
                self._fill("tokenizers", name, entry, shape=self._shapes_of_tokenizer(name, entry))
        for name, entry in self._entries("backbones"):
            keys = INFERRED["backbones"] if entry.get("kind") in CLASS_NETWORKS else ("shape",)
            if any(entry.get(key) in (None, "infer") for key in keys):
                shapes, classes = self._of_latents(name)
                if shapes is None:  # used by nothing
                    if entry.get("shape") in (None, "infer"):
                        del self._parts["backbones"][name]
                    continue
                self._check_patch(name, entry)
                conditional = {"classes": classes} if "classes" in keys else {}
                self._fill("backbones", name, entry, shape=shapes, **conditional)

    def _entries(self, part: str) -> list[tuple[str, Mapping[str, Any]]]:
        return [
            (name, entry) for name, entry in self._parts.get(part, {}).items() if isinstance(entry, Mapping)
        ]

    @staticmethod
    def _open(part: str, entry: Mapping[str, Any]) -> bool:
        return any(entry.get(key) in (None, "infer") for key in INFERRED[part])

    def _fill(self, part: str, name: str, entry: Mapping[str, Any], **found: list[Any]) -> None:
        """Give an entry what it leaves out, if all that use it have the same."""
        values = {}
        for key, several in found.items():
            if entry.get(key) not in (None, "infer") or not several:
                continue
            if any(value != several[0] for value in several):
                raise ConfigError(
                    f"{self._settings_file}: {part}.{name}.{key}: is left out, and what it is used for has "
                    f"{' and '.join(map(str, several[:2]))}; give it"
                )
            values[key] = several[0]
        self._parts[part][name] = {**entry, **values}

    def _dataset(self, name: str, entry: Mapping[str, Any], asset: Mapping[str, Any]) -> Entries:
        """The entry with what its folder holds; the asset's entry then says what lies there."""
        given = {key: value for key, value in entry.items() if value not in (None, "infer")}
        for key in given.keys() - Dataset.model_fields.keys():  # else what it stands for seems left out
            raise ConfigError(
                f"{self._settings_file}: datasets.{name}.{key}: unknown key, perhaps misspelt"
                f"{nearest(str(key), Dataset.model_fields, '')}"
            )
        key = str(given["asset"])
        folder = Path(str(asset.get("path"))).expanduser()
        try:
            found = look_into(
                folder, given.get("columns", ["image", "label"]), self._kept / f"{key}.listing.json"
            )
        except (ValueError, OSError) as error:
            raise ConfigError(f"{self._assets_file}: {key}.path: {error}") from None
        if given.get("format", found.format) != found.format:
            return given
        self._assets[key] = {**asset, "listing": found.digest}
        resolution = given.get("resolution") or self._side(name, folder, found)
        names = {"names": found.names} if found.names else {}
        prefix = {"prefix": found.prefix} if found.prefix else {}
        self.notes.append(_note(name, folder, found, resolution))
        return {
            "format": found.format,
            "resolution": resolution,
            "images": found.images,
            "classes": found.classes,
            "crop": "adm",
            **names,
            **prefix,
            **given,
        }

    def _side(self, name: str, folder: Path, found: ImageFolder) -> int:
        """The side of the images, which must be squares of one size."""
        sides = {side for size in found.sizes for side in size}
        if len(sides) > 1:
            raise ConfigError(
                f"{self._settings_file}: datasets.{name}.resolution: is left out, and the images in {folder} "
                f"have {_sizes(found)} pixels; give the side that they are cropped and resized to"
            )
        return sides.pop()

    def _shapes_of_tokenizer(self, name: str, entry: Mapping[str, Any]) -> list[list[int]]:
        """Of the latents of each data set that goes through a tokenizer."""
        if str(entry.get("kind")) not in LATENTS:
            return []
        channels, factor = LATENTS[str(entry["kind"])]
        shapes = []
        for _, latents in self._entries("latents"):
            dataset = self._named("datasets", latents.get("dataset"))
            side = dataset.get("resolution")
            if latents.get("tokenizer") == name and isinstance(side, int):
                if side % factor:
                    raise ConfigError(
                        f"{self._settings_file}: datasets.{latents['dataset']}.resolution: {side} is no "
                        f"multiple of {factor}, which tokenizer {name} needs"
                    )
                shapes.append([channels or dataset.get("channels", 3), side // factor, side // factor])
        return shapes

    def _of_latents(self, backbone: str) -> tuple[list[Any] | None, list[Any]]:
        """Shapes of the latents, and numbers of classes, of all recipes under which a network is used.

        None in place of the shapes: it is not used.
        """
        latents = self._latents_of(backbone)
        if not latents:
            return None, []
        shapes = [self._named("tokenizers", each.get("tokenizer")).get("shape") for each in latents]
        classes = [self._named("datasets", each.get("dataset")).get("classes") for each in latents]
        return [one for one in shapes if one is not None], [one for one in classes if one is not None]

    def _latents_of(self, backbone: str) -> list[Mapping[str, Any]]:
        """Entries of the latents of all recipes under which a network is used."""
        used = [entry for _, entry in self._entries("recipes") if entry.get("backbone") == backbone]
        methods = [_named(self._methods, name) for name in self._methods]
        used += [
            self._named("recipes", method.get("recipe"))
            for method in methods
            if method.get("backbone") == backbone
        ]
        return [self._named("latents", recipe.get("latents")) for recipe in used]

    def _check_patch(self, name: str, entry: Mapping[str, Any]) -> None:
        """Refuse a resolution whose latents a network cannot cut into its patches."""
        patch = entry.get("patch")
        for latents in self._latents_of(name):
            tokenizer = self._named("tokenizers", latents.get("tokenizer"))
            side = self._named("datasets", latents.get("dataset")).get("resolution")
            if not isinstance(patch, int) or patch < 1 or not isinstance(side, int):
                continue
            multiple = patch * LATENTS.get(str(tokenizer.get("kind")), (None, 1))[1]
            if side % multiple:
                raise ConfigError(
                    f"{self._settings_file}: datasets.{latents['dataset']}.resolution: must be a multiple of "
                    f"{multiple} for the patches of network {name}, not {side}"
                )

    def _named(self, part: str, name: Any) -> Mapping[str, Any]:
        return _named(self._parts.get(part, {}), name)


def _named(entries: Mapping[str, Any], name: Any) -> Mapping[str, Any]:
    """An entry by its name; nothing if there is none, which is told elsewhere."""
    entry = entries.get(name) if isinstance(name, str) else None
    return entry if isinstance(entry, Mapping) else {}


def _note(name: str, folder: Path, found: ImageFolder, resolution: int) -> str:
    """What a data set was found to be."""
    named = ", ".join(found.names[:5]) + (", ..." if len(found.names) > 5 else "")
    classes = f"{found.classes} class{'es' if found.classes > 1 else ''}" + (f" ({named})" if named else "")
    sizes = _sizes(found)
    square = f"{resolution}x{resolution}"
    fit = "" if sizes == square else f", cropped to the centre and resized to {square}"
    return (
        f"data set {name}: {found.images} images of {classes} in {folder / found.prefix}; {sizes} pixels{fit}"
    )


def _sizes(found: ImageFolder) -> str:
    """The smallest and the largest width and height, or one size."""
    return " to ".join(dict.fromkeys(f"{width}x{height}" for width, height in found.sizes))
