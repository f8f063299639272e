"""Secrets in addresses and headers reach the server, and nothing that is written or printed."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from configs import ROOT, make_plan, raw_config
from data_factories import write_spec

from fewstep.common.secrets_in_urls import redacted, with_secrets
from fewstep.config import ConfigError
from fewstep.config.assets import Asset, AssetFile
from fewstep.config.base import parse
from fewstep.config.specs import FetchSpec

SECRET = "s3cr3t-Value"
SECRETS = {SECRET, base64.b64encode(f"me:{SECRET}".encode()).decode()}
CONTENT = b"content" * 1000


class Handler(BaseHTTPRequestHandler):
    asked: list[tuple[str, str | None]] = []

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("Authorization")))
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", self.path.replace("/moved", "/elsewhere"))
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if self.path.startswith(("/none", "/no reason")):
            return self.send_error(404, f"no {self.path}")
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def written(folder: Path) -> bytes:
    return b"".join(
        path.read_bytes() + str(path).encode() for path in sorted(folder.rglob("*")) if path.is_file()
    )


def fetch(folder: Path, *urls: str, **variables: str) -> tuple[int, str]:
    asset = Asset(
        kind="http", licence="MIT", files=[AssetFile(name="a.bin", urls=list(urls))], unverified="x"
    )
    spec = write_spec(folder / "spec.json", FetchSpec(name="thing", asset=asset))
    proxies = {"http_proxy", "all_proxy"}
    environment = {key: value for key, value in os.environ.items() if key.lower() not in proxies}
    environment |= {"PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-m", "fewstep.launch", "--threads", "1", "fewstep.fetch"]
    command += ["--spec", spec, "--out", str(folder / "thing.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    told = done.stdout + done.stderr
    for secret in SECRETS:
        assert secret not in told and secret.encode() not in written(folder)
    return done.returncode, told


def test_secrets_reach_the_server_and_nothing_else(port: int, tmp_path: Path) -> None:
    Handler.asked.clear()
    failing = [
        f"http://127.0.0.1:{port}/none?token=${{TOKEN}}",
        f"http://me:${{TOKEN}}@127.0.0.1:{port}/none",
        f"http://127.0.0.1:{port}/none?spaced=${{SPACED}}",
        f"http://127.0.0.1:{port}/none?token=${{UNSET}}",
    ]
    good = f"http://me:${{TOKEN}}@127.0.0.1:{port}/moved?X-Amz-Signature=${{TOKEN}}"
    status, told = fetch(tmp_path, *failing, TOKEN=SECRET, SPACED=f"{SECRET} {SECRET}")
    assert status == 1, told
    for url in failing:
        assert url in told, told
    assert "the environment variable UNSET of this address is not set" in told
    assert "HTTP status 404 no /none?token=${TOKEN}" in told
    status, told = fetch(tmp_path, *failing[:1], good, TOKEN=SECRET)
    assert status == 0, told
    assert good.encode() in (tmp_path / "thing.json").read_bytes()
    header = f"Basic {base64.b64encode(f'me:{SECRET}'.encode()).decode()}"
    assert Handler.asked[-2:] == [
        (f"/moved?X-Amz-Signature={SECRET}", header),
        (f"/elsewhere?X-Amz-Signature={SECRET}", None),
    ]


@pytest.mark.parametrize(
    "url",
    [
        f"https://user:{SECRET}@host/file",
        f"https://{SECRET}@host/file",
        f"https://host/file?token={SECRET}",
        f"https://host/file?a=b&X-Amz-Signature={SECRET}&c=d",
        f"https://host/file?sv=1&sig={SECRET}",
        f"https://host/file?access_token={SECRET}#part",
        f"https://host/file?api-key={SECRET}",
    ],
)
def test_a_secret_that_is_written_out_is_refused_and_not_told(url: str) -> None:
    raw = {"name": "a.bin", "urls": [url], "sha256": "0" * 64}
    with pytest.raises(ConfigError, match=r"urls: .*\*\*\*.* write \$\{NAME\} in its place") as error:
        parse(AssetFile, raw, "assets.yaml")
    assert SECRET not in str(error.value)
    with pytest.raises(ConfigError) as error:
        parse(AssetFile, raw | {"urls": url}, "assets.yaml")
    assert SECRET not in str(error.value)
    raw_plan = raw_config("demo")
    raw_plan["overrides"] = {"assets": {"mine": {"kind": "http", "licence": "x", "files": [raw]}}}
    with pytest.raises(ConfigError) as error:
        make_plan(raw_plan)
    assert SECRET not in str(error.value)


def test_addresses_without_secrets_stay() -> None:
    for url in (
        "https://dropbox.com/scl/fi/a/x.pt?rlkey=uxz&dl=0",
        "https://host/file?token=${NAME}&x=1",
        "https://me:${NAME}@host/f",
        "https://drive.google.com/uc?id=1&confirm=t&authuser=0",
        "https://host/a@b/file",
    ):
        assert redacted(url) == url


def test_what_is_redacted() -> None:
    text = f"403 for url: https://cdn/x?Policy=p&Signature={SECRET} (Authorization: Bearer {SECRET})"
    assert redacted(text) == "403 for url: https://cdn/x?Policy=p&Signature=*** (Authorization: Bearer ***)"


def test_users_and_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAME", "a/b@c")
    assert with_secrets("https://me:${NAME}@host/f?x=${NAME}") == ("https://host/f?x=a/b@c", "me:a/b@c")
