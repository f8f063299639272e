"""The hub client against a small stand-in for the hub, in a process of its own (HF_ENDPOINT)."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from data_factories import write_spec

from fewstep.config.assets import Asset, AssetFile
from fewstep.config.specs import FetchSpec
from fewstep.data.fetching import fetch_asset
from fewstep.data.hub import HubRepository

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "data/train-0.parquet": b"first" * 100,
    "data/train-1.parquet": b"second" * 100,
    "data/test-0.parquet": b"test",
    "config.json": b"{}",
    "large.bin": bytes(range(256)) * (24 << 12),  # the client keeps what has arrived in pieces of 10 MB
}


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Hub(BaseHTTPRequestHandler):
    """Repository owner/name (open) and owner/gated; refusals with the hub's own codes and messages."""

    cuts: list[str] = []
    """Files whose next transfer breaks off in the middle."""
    asked: list[tuple[str, str | None]] = []
    closed: set[str] = set()
    """Files that are refused, once all others of the test have been asked for."""
    others = 0

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].replace("%2F", "/")
        if self.headers.get("Authorization") == "Bearer hf_wrong":
            message = "Invalid credentials in Authorization header"
            return self.answer(b"", status=401, headers={"X-Error-Message": message})
        if "owner/gated" in path:
            return self.answer(b"", status=403, headers={"X-Error-Code": "GatedRepo"})
        if path == "/api/models/owner/name/revision/main":
            siblings = [
                {
                    "rfilename": name,
                    "size": len(content),
                    "blobId": "0" * 40,
                    "lfs": {"sha256": sha(content), "size": len(content), "pointerSize": 1},
                }
                for name, content in FILES.items()
            ]
            info = {"id": "owner/name", "sha": COMMIT, "siblings": siblings}
            return self.answer(json.dumps(info).encode())
        if path == f"/api/models/owner/name/tree/{COMMIT}":
            entries = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(content),
                    "oid": "0" * 40,
                    "lfs": {"oid": sha(content), "size": len(content), "pointerSize": 1},
                }
                for name, content in FILES.items()
            ]
            return self.answer(json.dumps(entries).encode())
        name = path.removeprefix(f"/owner/name/resolve/{COMMIT}/")
        if name in self.closed:
            for _ in range(1000):
                if len(self.asked) >= self.others:
                    break
                time.sleep(0.01)
            return self.answer(b"", status=403)
        if name in FILES:
            return self.file(name)
        return self.answer(b"", status=404, headers={"X-Error-Code": "EntryNotFound"})

    def file(self, name: str) -> None:
        content, part = FILES[name], self.headers.get("Range")
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{sha(content)}"', "Accept-Ranges": "bytes"}
        start = int(part.removeprefix("bytes=").partition("-")[0]) if part else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if self.command == "GET":
            self.asked.append((name, part))
        if self.command == "GET" and name in self.cuts:
            self.cuts.remove(name)
            headers["Content-Length"] = str(len(content))
            return self.answer(content[: len(content) // 2], headers=headers)
        self.answer(content[start:], 206 if start else 200, headers)

    def answer(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.close_connection = True
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def fetch(
    folder: Path, endpoint: str, asset: Asset, token: str = "hf_secret", offline: bool = False
) -> subprocess.CompletedProcess[str]:
    spec = write_spec(folder / "spec.json", FetchSpec(name="thing", asset=asset))
    proxies = {"http_proxy", "https_proxy", "all_proxy"}
    environment = {key: value for key, value in os.environ.items() if key.lower() not in proxies}
    environment |= {"HF_HUB_OFFLINE": str(int(offline)), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hub"), "HF_TOKEN": token}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [sys.executable, "-m", "fewstep.fetch", "--spec", spec, "--out", str(folder / "thing.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert not token or (token not in done.stdout + done.stderr and token.encode() not in written)
    return done


def hub_asset(**change: object) -> Asset:
    base = {"kind": "hub", "licence": "MIT", "repo": "owner/name", "unverified": "a test"}
    return Asset.model_validate({**base, **change})


def test_patterns_and_files_with_the_commit(endpoint: str, tmp_path: Path) -> None:
    asset = hub_asset(files=[AssetFile(name="config.json")], patterns=["data/train-*.parquet"])
    done = fetch(tmp_path, endpoint, asset)
    assert done.returncode == 0, done.stderr
    names = ["config.json", "data/train-0.parquet", "data/train-1.parquet"]
    record = json.loads((tmp_path / "thing.json").read_text())
    assert [(file["name"], file["sha256"]) for file in record["files"]] == [
        (name, sha(FILES[name])) for name in names
    ]
    assert record["files"][1]["source"] == f"hf://models/owner/name@{COMMIT}/data/train-0.parquet"
    for name in names:
        assert (tmp_path / "thing" / name).read_bytes() == FILES[name]
    assert not (tmp_path / "thing/.incoming").exists()
    again = fetch(tmp_path, "http://127.0.0.1:9", hub_asset(files=[AssetFile(name="config.json")]))
    assert again.returncode == 0, again.stderr  # files that are known need no hub


def test_refusals_are_one_message_and_leave_no_file(endpoint: str, tmp_path: Path) -> None:
    wrong = AssetFile(name="config.json", sha256=sha(b"other"))
    for asset, message in (
        (hub_asset(files=[wrong]), f"config.json: sha256 is {sha(b'{}')} instead of {sha(b'other')}"),
        (hub_asset(patterns=["*.safetensors"]), "nothing in owner/name matches"),
        (hub_asset(files=[AssetFile(name="no.bin")]), "owner/name at main has no file no.bin"),
        (
            hub_asset(repo="owner/gated", files=[wrong]),
            "accept its licence at https://huggingface.co/owner/gated",
        ),
    ):
        done = fetch(tmp_path, endpoint, asset)
        assert done.returncode == 1 and message in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1].startswith("error: assets.thing"), done.stderr
        assert not (tmp_path / "thing.json").exists() and not (tmp_path / "thing/config.json").exists()


def test_a_full_disk_is_not_taken_for_a_hub_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "part")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    monkeypatch.setattr(HubRepository, "_info", SimpleNamespace(sha=COMMIT))
    with pytest.raises(ValueError, match=r"^assets\.thing: .*/thing: No space left on device$"):
        fetch_asset("thing", hub_asset(files=[AssetFile(name="a.bin")]), tmp_path / "thing.json")
    assert not (tmp_path / "thing.json").exists()


def test_a_gated_repository_needs_a_token_that_the_hub_knows(endpoint: str, tmp_path: Path) -> None:
    page = "https://huggingface.co/datasets/owner/gated"
    gated = hub_asset(repo="owner/gated", repo_type="dataset", patterns=["*"], gated=True, page=page)
    for token, message in (
        ("", f"accept its licence at {page}, then set HF_TOKEN"),
        ("hf_wrong", "assets.thing: the hub does not know the token in HF_TOKEN"),
        ("hf_right", f"accept its licence at {page}, then set HF_TOKEN"),
    ):
        done = fetch(tmp_path, endpoint, gated, token)
        assert done.returncode == 1 and message in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and not (tmp_path / "thing.json").exists()


def test_a_transfer_that_breaks_off_is_continued(endpoint: str, tmp_path: Path) -> None:
    name = "large.bin"
    Hub.cuts.append(name)
    Hub.asked.clear()
    done = fetch(tmp_path, endpoint, hub_asset(files=[AssetFile(name=name, sha256=sha(FILES[name]))]))
    assert done.returncode == 0, done.stderr
    (_, first), (_, second) = Hub.asked
    assert first is None and second == f"bytes={10 << 20}-"
    assert (tmp_path / "thing" / name).read_bytes() == FILES[name]


def test_a_later_run_transfers_only_what_is_missing(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asset = hub_asset(patterns=["data/*.parquet", "config.json"])
    monkeypatch.setattr(Hub, "closed", {"data/train-1.parquet"})
    monkeypatch.setattr(Hub, "others", 3)
    Hub.asked.clear()
    failed = fetch(tmp_path, endpoint, asset)
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("error: assets.thing: "), failed.stderr
    assert not (tmp_path / "thing.json").exists() and not (tmp_path / "thing/config.json").exists()
    arrived = {name for name, _ in Hub.asked}
    assert arrived == {"data/train-0.parquet", "data/test-0.parquet", "config.json"}
    monkeypatch.undo()
    Hub.asked.clear()
    assert fetch(tmp_path, endpoint, asset).returncode == 0
    assert [name for name, _ in Hub.asked] == ["data/train-1.parquet"]
    assert sorted(path.name for path in (tmp_path / "thing").iterdir()) == [
        ".known.json",
        ".listing.json",
        "config.json",
        "data",
    ]


def test_without_network_patterns_mean_what_they_matched_before(endpoint: str, tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    asset = hub_asset(patterns=["data/train-*.parquet"], gated=True)
    first = fetch(tmp_path, nowhere, asset, token="", offline=True)
    assert first.returncode == 1 and len(first.stderr.strip().splitlines()) == 1
    assert "assets.thing.patterns: HF_HUB_OFFLINE is set, and" in first.stderr
    assert "fetch it once where the network is" in first.stderr
    assert fetch(tmp_path, endpoint, asset).returncode == 0
    record = (tmp_path / "thing.json").read_bytes()
    (tmp_path / "thing.json").unlink()
    again = fetch(tmp_path, nowhere, asset, token="", offline=True)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "thing.json").read_bytes() == record
    (tmp_path / "thing/data/train-0.parquet").write_bytes(b"damaged")
    damaged = fetch(tmp_path, nowhere, asset, token="", offline=True)
    assert damaged.returncode == 1 and "HF_HUB_OFFLINE is set, and" in damaged.stderr
    assert "train-0.parquet is not there, or not what it should be" in damaged.stderr
    other = fetch(tmp_path, nowhere, hub_asset(patterns=["data/test-*"]), offline=True)
    assert other.returncode == 1 and "has no list of what ['data/test-*'] match" in other.stderr
