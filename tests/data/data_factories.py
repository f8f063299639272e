"""Inputs of tests: files as they come from outside, and latents made with the real stage."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from fewstep import encode
from fewstep.config import dump
from fewstep.config.assets import Asset
from fewstep.config.base import Strict
from fewstep.config.settings import Dataset, Latents, Tokenizer
from fewstep.config.specs import EncodeSpec, LatentCard
from fewstep.data.asset_files import Record, read_record
from fewstep.data.fetching import fetch_asset

DIGITS = Dataset(asset="digits", format="digits", resolution=8, channels=1, classes=10, images=1797)


def write_spec(path: Path, spec: Strict) -> str:
    path.write_text(dump(spec), encoding="utf-8")
    return str(path)


@dataclass
class LatentSet:
    """A folder of latents, and what they are encoded from."""

    folder: Path
    record: Path
    spec: EncodeSpec

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.json"

    @property
    def shards(self) -> list[Path]:
        return [self.folder / f"shard-{k:05d}.tar" for k in range(self.spec.latents.shards)]

    @property
    def card(self) -> LatentCard:
        spec = self.spec
        return LatentCard(
            name=spec.name,
            shape=spec.tokenizer.shape,
            classes=spec.dataset.classes,
            images=spec.dataset.images,
            tokenizer=spec.tokenizer,
        )

    def encode(self, tokenizer: Path | None = None, merge: bool = True) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        common = ["--spec", write_spec(self.folder / "spec.json", self.spec), "--source", str(self.record)]
        common += ["--tokenizer", *([str(tokenizer)] if tokenizer else [])]
        for k, shard in enumerate(self.shards):
            encode.main([*common, "--shard", str(k), "--out", str(shard)])
        if merge:
            paths = [str(shard) for shard in self.shards]
            encode.main([*common, "--merge", *paths, "--out", str(self.manifest)])


def pixel_latents(folder: Path, record: Path, flip: bool = True, shards: int = 2) -> LatentSet:
    spec = EncodeSpec(
        name="digits-pixels",
        dataset=DIGITS,
        tokenizer=Tokenizer(kind="pixels", shape=[1, 8, 8], statistics="computed", multiplier=0.5),
        latents=Latents(dataset="digits", tokenizer="pixels", shards=shards, flip=flip),
    )
    return LatentSet(folder, record, spec)


def tar_of(members: dict[str, bytes]) -> bytes:
    """An uncompressed tar of members by name."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def png(color: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> bytes:
    """An image of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, "png")
    return stream.getvalue()


def record_of(folder: Path, files: dict[str, bytes]) -> Record:
    """A fetched asset `mine` of these files, in ``folder``."""
    for name, content in files.items():
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    record = folder / "assets/mine.json"
    fetch_asset("mine", Asset(kind="local", licence="own", path=str(folder / "images")), record)
    return read_record(record)
