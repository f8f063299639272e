"""Bring an asset to this machine, verify it and record what it is.

    python -m fewstep.fetch --spec SPEC --out assets/NAME.json

The files go to the folder beside the record, assets/NAME/. Files that are already there and right
are kept. The record is written last, so that its presence means that all files were verified.
A file without a checksum in the configuration is trusted on first use: its hash is kept in the
folder, and a later download from the same place must match it. With HF_HUB_OFFLINE set, what a hub
asset needs must lie there already.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tqdm import tqdm

from .common.cli import parser, run
from .common.files import atomic, write_text
from .config import ConfigError, read_spec
from .config.assets import Asset, AssetFile, Moons
from .config.specs import FetchSpec
from .data.download import download, verify
from .data.records import RecordBody, RecordFile, folder_of, inside

KNOWN = ".known.json"


def main(argv: list[str] | None = None) -> None:
    """Run the stage.

    Raises:
        ConfigError: a file name that leaves the folder, a missing token or folder.
        ValueError: a file that cannot be had, or is not what the configuration says.
    """
    given = parser(__doc__).parse_args(argv)
    spec = read_spec(FetchSpec, given.spec)
    fetch(spec.name, spec.asset, given.out)


def fetch(name: str, asset: Asset, out: Path) -> RecordBody:
    """Fetch ``asset`` into the folder beside ``out`` and write the record to ``out``."""
    folder = folder_of(out)
    for file in asset.files:
        inside(folder, file.name, f"assets.{name}.files")
    try:
        if asset.kind == "local":
            files = _link(name, asset, folder)
        else:
            files = [
                _settle(file, folder, origin, bring) for file, origin, bring in _ways(name, asset, folder)
            ]
    except ConfigError:
        raise
    except ValueError as error:
        raise ValueError(f"assets.{name}: {error}") from None
    body = RecordBody(name=name, kind=asset.kind, title=asset.title, licence=asset.licence, files=files)
    write_text(out, body.model_dump_json(indent=1) + "\n")
    return body


Bring = Callable[[AssetFile, Path], tuple[int, str, str]]
"""Brings a file to a path; returns its size, SHA-256 and source."""


def _ways(name: str, asset: Asset, folder: Path) -> Iterator[tuple[AssetFile, str, Bring]]:
    if asset.kind == "sklearn":
        if asset.moons is None:
            origin, maker, usual = "sklearn.datasets.load_digits", _write_digits, "digits.npz"
        else:
            origin = f"sklearn.datasets.make_moons {asset.moons}"
            maker, usual = partial(_write_moons, asset.moons), "moons.npz"
        for file in asset.files or [AssetFile(name=usual)]:
            yield file, origin, maker
    elif asset.kind == "http":
        for file in asset.files:
            yield file, " ".join(sorted(file.urls)), download
    else:
        from .data.hub import Hub

        hub = Hub(name, asset, folder)
        for file in hub.files():
            yield file, f"{hub.place}@{asset.revision}", hub.download
        hub.clear()


def _settle(file: AssetFile, folder: Path, origin: str, bring: Bring) -> RecordFile:
    """Keep the file if it is there and right; bring it otherwise; note its hash as known."""
    path = inside(folder, file.name, "files")
    known = _known(folder)
    first = known.get(file.name, {})
    trusted = file.sha256 is None and first.get("origin") == origin
    if trusted:
        file = file.model_copy(update={"sha256": first["sha256"]})
    if path.is_file() and file.sha256 is not None:
        try:
            size, digest = verify(path, file.bytes, file.sha256)
            source = first.get("source", origin)
            return RecordFile(name=file.name, bytes=size, sha256=digest, source=source)
        except ValueError as error:
            print(f"{path} is fetched again: {error}")
    try:
        size, digest, source = bring(file, path)
    except ValueError as error:
        hint = f"\n(expected is the hash of its first download; to accept a change, delete {folder / KNOWN})"
        raise ValueError(f"{error}{hint if trusted else ''}") from None
    known[file.name] = {"origin": origin, "sha256": digest, "source": source}
    write_text(folder / KNOWN, json.dumps(known, indent=1, sort_keys=True) + "\n")
    return RecordFile(name=file.name, bytes=size, sha256=digest, source=source)


def _known(folder: Path) -> dict[str, dict[str, str]]:
    path = folder / KNOWN
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _write_digits(file: AssetFile, path: Path) -> tuple[int, str, str]:
    """The bundled digits: ``images`` uint8 (1797, 8, 8) with values 0..16, ``labels`` int64 (1797,)."""
    import numpy as np
    from sklearn import __version__
    from sklearn.datasets import load_digits

    digits = load_digits()
    with atomic(path) as temporary:
        np.savez(temporary, images=digits.images.astype(np.uint8), labels=digits.target.astype(np.int64))
        size, digest = verify(temporary, file.bytes, file.sha256)
    return size, digest, f"scikit-learn {__version__} load_digits"


def _write_moons(draw: Moons, file: AssetFile, path: Path) -> tuple[int, str, str]:
    """Two moons: ``points`` float64 (n, 2) as scikit-learn gives them, and the ``noise`` in them."""
    import numpy as np
    from sklearn import __version__
    from sklearn.datasets import make_moons

    points, _ = make_moons(draw.points, noise=draw.noise, random_state=draw.seed)
    with atomic(path) as temporary:
        np.savez(temporary, points=points, noise=draw.noise)
        size, digest = verify(temporary, file.bytes, file.sha256)
    return size, digest, f"scikit-learn {__version__} make_moons {draw}"


def _link(name: str, asset: Asset, folder: Path) -> list[RecordFile]:
    """Hash the files of a folder of this machine and let ``folder`` point to it."""
    target = Path(asset.path or "").expanduser().resolve()
    if not target.is_dir():
        raise ConfigError(f"assets.{name}.path: {target} is not a folder")
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        raise ConfigError(f"assets.{name}: {folder} is a folder already; remove it to link to {target}")
    wanted = asset.files or [AssetFile(name=found) for found in _below(target)]
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


def _below(folder: Path) -> Iterator[str]:
    """Names of all files below ``folder``, sorted; hidden ones are left out."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield (Path(root) / name).relative_to(folder).as_posix()


if __name__ == "__main__":
    run(main)
