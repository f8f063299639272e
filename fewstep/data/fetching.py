"""Bringing an asset's files into its folder: those that are there and right are kept, others are brought.

Whatever its kind, a file gets its final name only when it is verified. A file without a checksum in the
configuration is trusted on first use: its hash is kept in the folder, and a later download from the same
place must match it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..common.files import atomic, write_text
from ..config import ConfigError
from ..config.assets import Asset, AssetFile
from .asset_files import RecordBody, RecordFile, folder_of, inside
from .download import download, verify
from .hub import HubRepository

KNOWN = ".known.json"


def fetch_asset(name: str, asset: Asset, out: Path) -> RecordBody:
    """Fetch ``asset`` into the folder beside ``out`` and, last, write the record ``out``.

    Raises:
        ConfigError: a file name that leaves the folder, a missing token or folder.
        ValueError: a file that cannot be had, or is not what the configuration says.
    """
    folder = folder_of(out)
    for file in asset.files:
        inside(folder, file.name, f"assets.{name}.files")
    try:
        files = _link(name, asset, folder) if asset.kind == "local" else _bring_all(name, asset, folder)
    except ConfigError:
        raise
    except ValueError as error:
        raise ValueError(f"assets.{name}: {error}") from None
    body = RecordBody(name=name, kind=asset.kind, title=asset.title, licence=asset.licence, files=files)
    write_text(out, body.model_dump_json(indent=1) + "\n")
    return body


def _bring_all(name: str, asset: Asset, folder: Path) -> list[RecordFile]:
    """Every file of the asset, kept or brought, in the order of the configuration."""
    hub = HubRepository(name, asset, folder) if asset.kind == "hub" else None
    files = hub.files() if hub else asset.files or [AssetFile(name=_bundled_name(asset))]
    known = _read_known(folder)
    done: dict[str, RecordFile] = {}
    missing, trusted = [], set()
    for file in files:
        before = known.get(file.name, {})
        if file.sha256 is None and before.get("origin") == _origin(asset, file):
            trusted.add(file.name)
            file = file.model_copy(update={"sha256": before["sha256"]})
        kept = _kept(file, folder, before.get("source", _origin(asset, file)))
        if kept is None:
            missing.append(file)
        else:
            done[file.name] = kept
    brought = hub.bring(missing) if hub else _bring_one_by_one(asset, missing, folder)
    for file in missing:
        try:
            found = next(brought)
        except ValueError as error:
            if isinstance(error, ConfigError) or file.name not in trusted:
                raise
            raise ValueError(
                f"{error}\n(expected is the hash of its first download; to accept a change, delete "
                f"{folder / KNOWN})"
            ) from None
        done[file.name] = found
        known[file.name] = {
            "origin": _origin(asset, file),
            "sha256": found.sha256,
            "source": found.source,
        }
        write_text(folder / KNOWN, json.dumps(known, indent=1, sort_keys=True) + "\n")
    if hub:
        hub.clear()
    return [done[file.name] for file in files]


def _kept(file: AssetFile, folder: Path, source: str) -> RecordFile | None:
    """The file's entry in the record, if it is there and right."""
    path = inside(folder, file.name, "files")
    if not path.is_file() or file.sha256 is None:
        return None
    try:
        size, digest = verify(path, file.bytes, file.sha256)
    except ValueError as error:
        print(f"{path} is fetched again: {error}")
        return None
    return RecordFile(name=file.name, bytes=size, sha256=digest, source=source)


def _read_known(folder: Path) -> dict[str, dict[str, str]]:
    """What is known of files that were brought before, by name: origin, sha256, source."""
    path = folder / KNOWN
    content: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return content


def _origin(asset: Asset, file: AssetFile) -> str:
    """The place whose files are trusted when they do not change."""
    if asset.kind == "http":
        return " ".join(sorted(file.urls))
    if asset.kind == "hub":
        return f"{asset.repo_type}s/{asset.repo}@{asset.revision}"
    if asset.moons is not None:
        return f"sklearn.datasets.make_moons {asset.moons}"
    return "sklearn.datasets.load_digits"


def _bring_one_by_one(asset: Asset, files: Iterable[AssetFile], folder: Path) -> Iterator[RecordFile]:
    for file in files:
        path = inside(folder, file.name, "files")
        size, digest, source = (
            download(file, path) if asset.kind == "http" else _write_bundled(asset, file, path)
        )
        yield RecordFile(name=file.name, bytes=size, sha256=digest, source=source)


def _bundled_name(asset: Asset) -> str:
    return "digits.npz" if asset.moons is None else "moons.npz"


def _write_bundled(asset: Asset, file: AssetFile, path: Path) -> tuple[int, str, str]:
    """Data that scikit-learn has or draws; returns size, SHA-256 and source.

    The digits: ``images`` uint8 (1797, 8, 8) with values 0..16, ``labels`` int64 (1797,). Two moons:
    ``points`` float64 (n, 2) as scikit-learn gives them, and the ``noise`` in them.
    """
    import numpy as np
    from sklearn import __version__, datasets

    content: dict[str, Any]
    if asset.moons is None:
        digits = datasets.load_digits()
        content = {"images": digits.images.astype(np.uint8), "labels": digits.target.astype(np.int64)}
        source = f"scikit-learn {__version__} load_digits"
    else:
        noise = asset.moons.noise
        points, _ = datasets.make_moons(asset.moons.points, noise=noise, random_state=asset.moons.seed)
        content = {"points": points, "noise": noise}
        source = f"scikit-learn {__version__} make_moons {asset.moons}"
    with atomic(path) as temporary:
        np.savez(temporary, **content)
        size, digest = verify(temporary, file.bytes, file.sha256)
    return size, digest, source


def _link(name: str, asset: Asset, folder: Path) -> list[RecordFile]:
    """Hash the files of a folder of this machine and let ``folder`` point to it."""
    target = Path(asset.path or "").expanduser().resolve()
    if not target.is_dir():
        raise ConfigError(f"assets.{name}.path: {target} is not a folder")
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        raise ConfigError(f"assets.{name}: {folder} is a folder already; remove it to link to {target}")
    wanted = asset.files or [AssetFile(name=found) for found in _visible_files(target)]
    if not wanted:
        raise ConfigError(f"assets.{name}.path: {target} has no files")
    files = []
    for file in tqdm(wanted, desc=f"hashing {name}", mininterval=1.0):
        path = inside(target, file.name, f"assets.{name}.path")
        if not path.is_file():
            raise ConfigError(f"assets.{name}.files: {path} does not exist")
        size, digest = verify(path, file.bytes, file.sha256)
        files.append(RecordFile(name=file.name, bytes=size, sha256=digest, source="local"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.symlink_to(target, target_is_directory=True)
    return files


def _visible_files(folder: Path) -> Iterator[str]:
    """Names of all files below ``folder``, sorted; hidden ones are left out."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield (Path(root) / name).relative_to(folder).as_posix()
