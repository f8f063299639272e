"""Fetching: verified or not there, resumable, never outside its folder."""

from __future__ import annotations

import hashlib
import json
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fewstep.config import ConfigError
from fewstep.config.assets import Asset, AssetFile
from fewstep.data import fetching
from fewstep.data.asset_files import read_record
from fewstep.data.fetching import fetch_asset

CONTENT = bytes(range(256)) * 4096
HASH = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves ``files``; cuts the connection after ``cut`` bytes while ``cuts`` lasts."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"/good.bin": CONTENT, "/bad.bin": CONTENT[::-1]}
        self.cut, self.cuts = 300_000, 0
        self.ranges = self.tells_length = True
        self.moved = {"/old.bin": "/good.bin"}
        self.failures: list[int] = []
        self.asked: list[tuple[str, str | None]] = []

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append((self.path, asked))
        if self.server.failures:
            return self.send_error(self.server.failures.pop())
        if self.path in self.server.moved:
            self.send_response(301)
            self.send_header("Location", self.server.moved[self.path])
            self.send_header("Content-Length", "0")
            return self.end_headers()
        content = self.server.files.get(self.path)
        if content is None:
            return self.send_error(404)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        content = content[start:]
        if self.server.tells_length:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.server.cuts:
            self.server.cuts -= 1
            content = content[: self.server.cut]
        self.wfile.write(content)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(fetching, "PAUSES", (0.0, 0.0))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as result:
        threading.Thread(target=result.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield result
        result.shutdown()


def http_asset(*urls: str, sha256: str | None = HASH, size: int | None = len(CONTENT)) -> Asset:
    file = AssetFile(name="weights/file.bin", urls=list(urls), bytes=size, sha256=sha256)
    return Asset(kind="http", licence="MIT", title="A file", files=[file], unverified="a test")


def test_http_file_and_record(server: Server, tmp_path: Path) -> None:
    fetch_asset("thing", http_asset(server.url("good.bin")), tmp_path / "thing.json")
    assert (tmp_path / "thing/weights/file.bin").read_bytes() == CONTENT
    record = json.loads((tmp_path / "thing.json").read_text())
    assert record["name"] == "thing" and record["licence"] == "MIT"
    (file,) = record["files"]
    assert file == {
        "name": "weights/file.bin",
        "bytes": len(CONTENT),
        "sha256": HASH,
        "blocks": f"{zlib.crc32(CONTENT):08x}",
        "source": server.url("good.bin"),
    }


def test_files_that_are_right_are_kept_and_damaged_ones_replaced(server: Server, tmp_path: Path) -> None:
    asset, out = http_asset(server.url("good.bin")), tmp_path / "thing.json"
    fetch_asset("thing", asset, out)
    out.unlink()
    fetch_asset("thing", asset, out)
    assert len(server.asked) == 1 and out.exists()
    (tmp_path / "thing/weights/file.bin").write_bytes(CONTENT[::-1])
    fetch_asset("thing", asset, out)
    assert len(server.asked) == 2 and (tmp_path / "thing/weights/file.bin").read_bytes() == CONTENT


def test_a_cut_transfer_is_resumed_in_the_same_run(server: Server, tmp_path: Path) -> None:
    server.cuts = 2
    fetch_asset("thing", http_asset(server.url("good.bin"), sha256=None, size=None), tmp_path / "thing.json")
    assert [asked for _, asked in server.asked] == [None, "bytes=300000-", "bytes=600000-"]
    assert (tmp_path / "thing/weights/file.bin").read_bytes() == CONTENT


def test_a_cut_transfer_is_resumed_by_a_later_run(server: Server, tmp_path: Path) -> None:
    server.cuts = 3
    asset = http_asset(server.url("good.bin"))
    with pytest.raises(ValueError, match=r"(?s)assets\.thing.*broke off after 900000 of 1048576"):
        fetch_asset("thing", asset, tmp_path / "thing.json")
    assert not (tmp_path / "thing.json").exists()
    assert not (tmp_path / "thing/weights/file.bin").exists()
    assert (tmp_path / "thing/weights/file.bin.part").stat().st_size == 900_000
    fetch_asset("thing", asset, tmp_path / "thing.json")
    assert server.asked[-1] == ("/good.bin", "bytes=900000-")
    assert not (tmp_path / "thing/weights/file.bin.part").exists()


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.cuts, server.ranges = 1, False
    fetch_asset("thing", http_asset(server.url("good.bin")), tmp_path / "thing.json")
    assert (tmp_path / "thing/weights/file.bin").read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"sha256 is .* instead of {HASH}"):
        fetch_asset("thing", http_asset(server.url("bad.bin")), tmp_path / "thing.json")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


def test_mirrors_are_tried_in_order(server: Server, tmp_path: Path) -> None:
    urls = [server.url("missing.bin"), server.url("bad.bin"), server.url("good.bin")]
    body = fetch_asset("thing", http_asset(*urls), tmp_path / "thing.json")
    assert [path for path, _ in server.asked] == ["/missing.bin", "/bad.bin", "/good.bin"]
    assert body.files[0].source == urls[2]


def test_a_mirror_that_moved_is_followed_and_continued(server: Server, tmp_path: Path) -> None:
    server.cuts = 1
    fetch_asset("thing", http_asset(server.url("old.bin")), tmp_path / "thing.json")
    assert (tmp_path / "thing/weights/file.bin").read_bytes() == CONTENT
    assert server.asked[1:] == [
        ("/good.bin", None),
        ("/old.bin", "bytes=300000-"),
        ("/good.bin", "bytes=300000-"),
    ]


def test_server_errors_are_retried_and_refusals_are_not(server: Server, tmp_path: Path) -> None:
    server.failures = [503, 429]
    fetch_asset("thing", http_asset(server.url("good.bin")), tmp_path / "thing.json")
    assert len(server.asked) == 3
    with pytest.raises(ValueError, match=r"missing\.bin: HTTP status 404"):
        fetch_asset("other", http_asset(server.url("missing.bin")), tmp_path / "other.json")
    assert len(server.asked) == 4


def test_a_server_that_does_not_tell_the_length(server: Server, tmp_path: Path) -> None:
    """Half a file must not become the one that is trusted, and an endless one must end."""
    server.tells_length = False
    fetch_asset("sized", http_asset(server.url("good.bin"), sha256=None), tmp_path / "sized.json")
    fetch_asset("hashed", http_asset(server.url("good.bin"), size=None), tmp_path / "hashed.json")
    server.cuts = 1
    with pytest.raises(ValueError, match="does not say how long the file is: set its bytes or sha256"):
        fetch_asset("x", http_asset(server.url("good.bin"), sha256=None, size=None), tmp_path / "x.json")
    with pytest.raises(ValueError, match="the server sends more than 1000 bytes"):
        fetch_asset("x", http_asset(server.url("good.bin"), size=1000), tmp_path / "x.json")
    server.tells_length = True
    with pytest.raises(ValueError, match=f"the file has {len(CONTENT)} bytes instead of 1000"):
        fetch_asset("x", http_asset(server.url("good.bin"), size=1000), tmp_path / "x.json")
    assert not (tmp_path / "x.json").exists() and not (tmp_path / "x/weights/file.bin").exists()


def test_trust_on_first_use(server: Server, tmp_path: Path) -> None:
    asset, out = http_asset(server.url("good.bin"), sha256=None, size=None), tmp_path / "thing.json"
    assert fetch_asset("thing", asset, out).files[0].sha256 == HASH
    fetch_asset("thing", asset, out)
    assert len(server.asked) == 1
    server.files["/good.bin"] = CONTENT[::-1]
    (tmp_path / "thing/weights/file.bin").unlink()
    with pytest.raises(ValueError, match="first download"):
        fetch_asset("thing", asset, out)
    assert not (tmp_path / "thing/weights/file.bin").exists()


def test_another_origin_is_not_trusted(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "thing.json"
    fetch_asset("thing", http_asset(server.url("good.bin"), sha256=None), out)
    fetch_asset("thing", http_asset(server.url("bad.bin"), sha256=None), out)
    assert (tmp_path / "thing/weights/file.bin").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/evil", "a/../../evil", "c:\\evil", "a\\b", ".known.json", ""]
)
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    file = AssetFile(name=name, urls=["http://127.0.0.1:1/x"], sha256=HASH)
    with pytest.raises(ConfigError, match=r"assets\.thing\.files: file name"):
        fetch_asset("thing", Asset(kind="http", licence="MIT", files=[file]), tmp_path / "thing.json")
    assert list(tmp_path.iterdir()) == []


def test_digits_are_the_bundled_ones_and_deterministic(digits_record: Path, tmp_path: Path) -> None:
    again = fetch_asset("digits", Asset(kind="sklearn", licence="CC BY 4.0"), tmp_path / "digits.json")
    assert again.files == read_record(digits_record).body.files
    with np.load(tmp_path / "digits/digits.npz", allow_pickle=False) as content:
        assert content["images"].dtype == np.uint8 and content["images"].shape == (1797, 8, 8)
        assert np.array_equal(content["images"], load_digits().images)
        assert np.array_equal(content["labels"], load_digits().target)


def test_local_folder_is_linked_and_hashed(tmp_path: Path) -> None:
    (tmp_path / "images/cat").mkdir(parents=True)
    (tmp_path / "images/cat/1.png").write_bytes(b"cat")
    (tmp_path / "images/.hidden").write_bytes(b"no")
    asset = Asset(kind="local", licence="own", path=str(tmp_path / "images"))
    for _ in range(2):
        body = fetch_asset("mine", asset, tmp_path / "assets/mine.json")
    assert [(file.name, file.sha256) for file in body.files] == [
        ("cat/1.png", hashlib.sha256(b"cat").hexdigest())
    ]
    record = read_record(tmp_path / "assets/mine.json")
    assert record.open("cat/1.png").read() == b"cat"
    (tmp_path / "images/cat/1.png").write_bytes(b"tiger")
    with pytest.raises(ConfigError, match="has 5 bytes, the record says 3"):
        record.open("cat/1.png")
    with pytest.raises(ConfigError, match="is not a folder"):
        fetch_asset("mine", asset.model_copy(update={"path": str(tmp_path / "none")}), tmp_path / "mine.json")


def test_gated_without_token_names_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    asset = Asset(
        kind="hub", licence="own", repo="a/b", patterns=["*"], gated=True, page="https://x.y/licence"
    )
    with pytest.raises(
        ConfigError, match=r"assets\.thing: a/b is gated: accept its licence at https://x\.y/lic"
    ):
        fetch_asset("thing", asset, tmp_path / "thing.json")
    assert not (tmp_path / "thing.json").exists()
