"""Files of Hugging Face repositories. The only module that imports huggingface_hub."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ..common.files import write_text
from ..config import ConfigError, Strict
from ..config.assets import Asset, AssetFile
from .download import verify

Result = TypeVar("Result")
STAGING = ".incoming"
LISTING = ".listing.json"


class Listing(Strict):
    """What the patterns of an asset matched when the hub was asked last."""

    repo: str
    revision: str
    patterns: list[str]
    commit: str
    files: list[AssetFile]


class Hub:
    """The repository of one asset at one revision, and the ``folder`` of its files.

    With HF_HUB_OFFLINE set the hub is not asked: files that are in the folder are enough, and patterns
    mean the files that they matched before.

    Raises:
        ConfigError: the asset is gated and there is no token.
    """

    def __init__(self, name: str, asset: Asset, folder: Path) -> None:
        import huggingface_hub
        from huggingface_hub import constants

        self._hub = huggingface_hub
        self._offline = constants.HF_HUB_OFFLINE
        self._name = name
        self._asset = asset
        self._folder = folder
        self._staging = folder / STAGING
        self._commit: str | None = None
        self.place = f"{asset.repo_type}s/{asset.repo}"
        if asset.gated and not self._offline and not huggingface_hub.get_token():
            raise ConfigError(self._locked())

    def _locked(self) -> str:
        page = self._asset.page or f"https://huggingface.co/{self._asset.repo}"
        return (
            f"assets.{self._name}: {self._asset.repo} is gated: accept its licence at {page}, "
            f"then set HF_TOKEN to a token of that account"
        )

    def files(self) -> Iterator[AssetFile]:
        """The files that the asset asks for, with the hub's own hashes where it publishes them."""
        yield from self._asset.files
        if self._asset.patterns:
            yield from self._remembered() if self._offline else self._listed()

    def _listed(self) -> list[AssetFile]:
        from huggingface_hub.utils import filter_repo_objects

        listed = self._call(
            lambda: list(
                self._hub.HfApi().list_repo_tree(
                    self._asset.repo,
                    recursive=True,
                    revision=self._resolve(),
                    repo_type=self._asset.repo_type,
                )
            )
        )
        entries = [
            entry for entry in listed if isinstance(entry, self._hub.RepoFile) and not _hidden(entry.path)
        ]
        chosen = filter_repo_objects(
            entries, allow_patterns=self._asset.patterns, key=lambda entry: entry.path
        )
        found = sorted(chosen, key=lambda entry: entry.path)
        if not found:
            raise ConfigError(
                f"assets.{self._name}.patterns: nothing in {self._asset.repo} matches {self._asset.patterns}"
            )
        files = [
            AssetFile(
                name=entry.path, bytes=entry.size or None, sha256=entry.lfs.sha256 if entry.lfs else None
            )
            for entry in found
        ]
        listing = Listing(commit=self._resolve(), files=files, **self._asked())
        write_text(self._folder / LISTING, listing.model_dump_json(indent=1) + "\n")
        return files

    def _remembered(self) -> list[AssetFile]:
        path = self._folder / LISTING
        if path.exists():
            listing = Listing.model_validate_json(path.read_text(encoding="utf-8"))
            if listing.model_dump(include=set(self._asked())) == self._asked():
                return listing.files
        raise ConfigError(
            f"assets.{self._name}.patterns: HF_HUB_OFFLINE is set, and {self._folder} has no list of what "
            f"{self._asset.patterns} match in {self._asset.repo}: fetch it once where the network is"
        )

    def _asked(self) -> dict[str, Any]:
        asset = self._asset
        return {"repo": self.place, "revision": asset.revision, "patterns": asset.patterns}

    def download(self, file: AssetFile, path: Path) -> tuple[int, str, str]:
        """Bring one file to ``path``: size, SHA-256, and its hub path with the commit."""
        if self._offline:
            raise ConfigError(
                f"assets.{self._name}: HF_HUB_OFFLINE is set, and {path} is not there, or not what it "
                f"should be: fetch it where the network is"
            )
        commit = self._resolve()
        arrived = self._call(
            lambda: self._hub.hf_hub_download(
                self._asset.repo,
                file.name,
                repo_type=self._asset.repo_type,
                revision=commit,
                local_dir=self._staging,
            )
        )
        try:
            size, digest = verify(Path(arrived), file.bytes, file.sha256)
        except ValueError:
            shutil.rmtree(self._staging)
            raise
        path.parent.mkdir(parents=True, exist_ok=True)
        Path(arrived).replace(path)
        return size, digest, f"hf://{self.place}@{commit}/{file.name}"

    def clear(self) -> None:
        """Forget what the client keeps of transfers."""
        shutil.rmtree(self._staging, ignore_errors=True)

    def _resolve(self) -> str:
        """The commit behind the revision: one snapshot for all files, and a name for it."""
        if self._commit is None:
            info = self._call(
                lambda: self._hub.HfApi().repo_info(
                    self._asset.repo, revision=self._asset.revision, repo_type=self._asset.repo_type
                )
            )
            self._commit = info.sha
        return self._commit

    def _call(self, action: Callable[[], Result]) -> Result:
        from huggingface_hub import errors

        try:
            return action()
        except errors.GatedRepoError:
            raise ConfigError(self._locked()) from None
        except errors.HfHubHTTPError as error:
            if error.response is not None and error.response.status_code == 401:
                raise ConfigError(
                    f"assets.{self._name}: the hub does not know the token in HF_TOKEN (or this repository, "
                    f"{self._asset.repo}); tokens are made at https://huggingface.co/settings/tokens"
                ) from None
            raise ValueError(f"{self._asset.repo} at {self._asset.revision}: {error}") from None
        except (errors.LocalEntryNotFoundError, errors.HTTPError, OSError) as error:
            raise ValueError(f"the hub cannot be reached: {error.__cause__ or error}") from None


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))
