"""Download over HTTP with mirrors, retries and resumption; nothing unverified gets the final name."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from ..common.files import sha256
from ..config.assets import AssetFile

PAUSES = (1.0, 4.0, 15.0)
"""Seconds between the attempts at one mirror."""
TIMEOUT = 60.0
PIECE = 1 << 20


def verify(path: Path, size: int | None, checksum: str | None) -> tuple[int, str]:
    """Size and SHA-256 of a file.

    Raises:
        ValueError: either differs from what was expected (None: nothing was).
    """
    found = path.stat().st_size
    if size is not None and found != size:
        raise ValueError(f"{path.name}: {found} bytes instead of {size}")
    digest = sha256(path)
    if checksum is not None and digest != checksum:
        raise ValueError(f"{path.name}: sha256 is {digest} instead of {checksum}")
    return found, digest


def download(file: AssetFile, path: Path) -> tuple[int, str, str]:
    """Bring ``file`` to ``path`` from the first mirror that delivers what ``file`` promises.

    An interrupted transfer lies in ``path`` + ".part" and is continued by a later call, provided
    that a checksum can tell whether the pieces fit together.

    Returns:
        Size, SHA-256 and the URL that served it.

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
            size, digest = verify(part, file.bytes, file.sha256)
        except _MirrorError as error:
            failures.append(f"{url}: {error}")
        except ValueError as error:
            part.unlink()
            failures.append(f"{url}: {error}")
        else:
            part.replace(path)
            return size, digest, url
    raise ValueError(f"{file.name} could not be fetched:\n" + "\n".join(failures))


class _MirrorError(Exception):
    """This mirror is given up."""


def _transfer(url: str, part: Path, file: AssetFile) -> None:
    """Fill ``part`` from ``url``, over several connections if they break."""
    for pause in (*PAUSES, None):
        try:
            return _append(url, part, file)
        except urllib.error.HTTPError as error:
            reason = f"HTTP status {error.code} {error.reason}"
            if error.code == 416:
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code not in (408, 429):
                raise _MirrorError(reason) from None
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
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
    request = urllib.request.Request(url, headers={"User-Agent": "fewstep"})
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
