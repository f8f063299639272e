"""Uploads, against a small stand-in for the hub: which files go where, and what is said when they do not."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from class_models import KINDS, export_words, write_model
from huggingface_hub import constants

from fewstep import pipeline
from fewstep.common.folders import visible_files
from fewstep.config import ConfigError

TOKEN = "hf_secret"


class Hub(BaseHTTPRequestHandler):
    """Repositories of the owner `me`; what is uploaded is kept in the server."""

    def log_message(self, *args: object) -> None:
        pass

    def do_PUT(self) -> None:
        content = self.body()
        self.server.stored[self.path.removeprefix("/lfs/")] = content
        self.answer({})

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].removeprefix("/api/models/")
        self.answer({"id": name, "private": self.server.repositories[name] == "private"})

    def do_POST(self) -> None:
        path, body = self.path.partition("?")[0], self.body()
        self.server.asked.append(path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid username or password."}, 401)
        repository = next((name for name in self.server.repositories if f"/{name}" in path), None)
        if path == "/api/validate-yaml":
            metadata = json.loads(body)["content"].split("---")[1]
            names = yaml.safe_load(metadata)
            right = set(names["license_name"]) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.")
            errors = [] if right and self.server.metadata else [{"message": '"license_name" is none'}]
            return self.answer({"errors": errors, "warnings": []}, 400 if errors else 200)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            url = {"url": f"{self.server.address}/{name}"}
            if name in self.server.repositories:
                return self.answer({"error": "You already created this model repo", **url}, 409)
            private = asked.get("private") or asked.get("visibility") == "private"  # by the client's version
            self.server.repositories[name] = "private" if private else "public"
            return self.answer(url)
        if repository is None:
            return self.answer({"error": "Repository not found"}, 404)
        if path == f"/api/models/{repository}/preupload/main":
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": modes})
        if path == f"/{repository}.git/info/lfs/objects/batch":
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.server.address}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        if path == f"/api/models/{repository}/commit/main":
            lines = [json.loads(line) for line in body.splitlines()]
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    self.server.files[repository, value["path"]] = base64.b64decode(value["content"])
                if line["key"] == "lfsFile":
                    self.server.files[repository, value["path"]] = self.server.stored[value["oid"]]
            url = f"{self.server.address}/{repository}/commit/{'0' * 40}"
            return self.answer({"commitUrl": url, "commitOid": "0" * 40, "hookOutput": ""})
        return self.answer({"error": "not known here"}, 404)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def answer(self, content: object, status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.close_connection = True
        self.wfile.write(text)


@pytest.fixture
def hub(monkeypatch) -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.address = f"http://127.0.0.1:{server.server_address[1]}"
        server.repositories, server.files, server.stored, server.asked = {}, {}, {}, []
        server.metadata = True
        for name in list(os.environ):
            if name.lower() in ("http_proxy", "https_proxy", "all_proxy"):
                monkeypatch.delenv(name)
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("model") / "model"
    path, spec = write_model(folder, KINDS["lightningdit"])
    return path, export_words(path, spec, Path("pipeline"))


def words(model: tuple[Path, list[str]], folder: Path, *more: str, repository: str = "me/model") -> list[str]:
    """A call that writes ``folder`` and uploads it."""
    found = list(model[1])
    found[found.index("--out") + 1] = str(folder / "model_index.json")
    return [*found, "--push-to-hub", repository, *more]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_the_command_uploads_the_whole_folder(hub, model, tmp_path):
    """In a process of its own; a repository that is made is private."""
    folder = tmp_path / "pipeline"
    environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_XET": "1"}
    environment["HF_HOME"] = str(tmp_path)
    command = [sys.executable, "-m", "fewstep.pipeline", *words(model, folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{hub.address}/me/model: 7 files uploaded" in done.stdout
    assert TOKEN not in done.stdout + done.stderr
    assert hub.repositories == {"me/model": "private"}
    uploaded = {name: sha256(content) for (_, name), content in hub.files.items()}
    assert uploaded == {name: sha256((folder / name).read_bytes()) for name in visible_files(folder)}
    assert set(uploaded) == {
        *("README.md", "fewstep.json", "model_index.json", "pipeline.py"),
        *("model/config.json", "model/diffusion_pytorch_model.safetensors", "model/model.py"),
    }


def test_a_public_repository_is_asked_for(hub, model, tmp_path):
    pipeline.main(words(model, tmp_path / "pipeline", "--public"))
    assert hub.repositories == {"me/model": "public"}
    pipeline.main(words(model, tmp_path / "pipeline", repository="me/other"))
    assert hub.repositories["me/other"] == "private"


def test_a_repository_that_is_there_is_as_it_is_asked_for(hub, model, tmp_path):
    hub.repositories |= {"me/shown": "public", "me/hidden": "private"}
    shown = words(model, tmp_path / "shown", repository="me/shown")
    hidden = words(model, tmp_path / "hidden", repository="me/hidden")
    refused(shown, "me/shown: nothing is uploaded: it is public; pass --public, or make it private in its")
    refused([*hidden, "--public"], "me/hidden: nothing is uploaded: it is private; leave --public out, or")
    assert not hub.files
    pipeline.main([*shown, "--public"])
    pipeline.main(hidden)
    assert hub.repositories == {"me/shown": "public", "me/hidden": "private"}
    assert {("me/shown", "model_index.json"), ("me/hidden", "model_index.json")} <= set(hub.files)


def test_inputs_of_a_folder_that_is_not_written_are_refused(hub, model, tmp_path):
    """The older folder would be uploaded, and taken for one that is made of them."""
    folder = tmp_path / "pipeline"
    pipeline.main(words(model, folder)[:-2])
    call = ["--out", str(folder / "model_index.json"), "--push-to-hub", "me/model"]
    for name in ("model", "tokenizer", "latents", "encoder"):
        refused([*call, f"--{name}", "x"], f"--{name}: belongs to --spec, without which the folder of --out")
    assert not hub.asked


@pytest.mark.parametrize("about", [{}, {"files": []}, {"files": {}}])
def test_a_folder_without_checksums_is_not_uploaded(hub, tmp_path, about):
    """An earlier version wrote none."""
    (tmp_path / "fewstep.json").write_text(json.dumps(about))
    call = ["--out", str(tmp_path / "model_index.json"), "--push-to-hub", "me/model"]
    refused(call, r"fewstep\.json: files: lists none; write the folder again, with --spec")
    (tmp_path / "fewstep.json").write_text("[]")
    with pytest.raises(ValueError, match=r"fewstep\.json: not what an export says of its folder"):
        pipeline.main(call)
    assert not hub.asked


def test_nothing_is_uploaded_of_a_folder_that_is_not_whole(hub, model, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fewstep.exporting.class_pipeline.Model.save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        pipeline.main(words(model, tmp_path / "pipeline"))
    assert not hub.asked and not (tmp_path / "pipeline").exists()


def test_a_folder_that_is_there_is_uploaded_if_it_is_whole(hub, model, tmp_path):
    """Its model card may have been written on."""
    folder = tmp_path / "pipeline"
    pipeline.main(words(model, folder)[:-2])
    call = ["--out", str(folder / "model_index.json"), "--push-to-hub", "me/model"]
    weights = folder / "model/diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    refused(call, r"model\.safetensors: not what was written there; write the folder again")
    weights.unlink()
    refused(call, r"model\.safetensors: missing; write the folder again")
    refused(["--out", str(tmp_path / "x/y.json"), *call[2:]], r"fewstep\.json: not there.*, with --spec")
    assert not hub.asked
    weights.write_bytes(content)
    with (folder / "README.md").open("a") as card:
        card.write("It draws digits.\n")
    (folder / "digits.png").write_bytes(b"a picture")
    pipeline.main(call)
    assert hub.files["me/model", "README.md"].endswith(b"It draws digits.\n")
    assert hub.files["me/model", "digits.png"] == b"a picture" and len(hub.files) == 8


def refused(call: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        pipeline.main(call)
    assert "\n" not in str(error.value) and TOKEN not in str(error.value)


def test_refusals_of_the_hub(hub, model, tmp_path, monkeypatch):
    """Each in one line, and nothing is left half uploaded."""
    hub.metadata = False
    refused(
        words(model, tmp_path / "a"),
        r'me/model: nothing is uploaded: Invalid metadata.*"license_name" is none',
    )
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused(words(model, tmp_path / "b"), r"me/model: nothing is uploaded: .*401")
    assert not hub.files
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused(words(model, tmp_path / "c"), r"me/model: nothing is uploaded: .*[Cc]onnect")
    assert all((tmp_path / name / "model_index.json").is_file() for name in "abc")


def test_bad_calls_are_refused_first(hub, model, tmp_path, monkeypatch):
    for repository in ("model", "me/model/part", "me/mo del", "me--you/model"):
        refused(
            words(model, tmp_path / "p", repository=repository), "not the name of a repository, owner/name"
        )
    refused([*model[1], "--public"], "--public: belongs to --push-to-hub")
    refused(["--out", str(tmp_path / "p/model_index.json")], "give --spec, to write a folder, or --push-to")
    refused([*model[1][:2], "--out", str(tmp_path / "p/x")], "to write the folder takes --model")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    refused(words(model, tmp_path / "p"), "no token of Hugging Face; set HF_TOKEN")
    assert not hub.asked and not (tmp_path / "p").exists()
