"""Files of Hugging Face repositories. The only module that imports huggingface_hub."""

from __future__ import annotations

import errno
import glob
import shutil
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from ..common.files import write_text
from ..common.folders import visible_files
from ..common.secrets_in_urls import redacted
from ..config import ConfigError
from ..config.assets import Asset, AssetFile
from ..config.base import read_sealed, sealed
from .asset_files import RecordFile, inside, verify

Result = TypeVar("Result")
STAGING = ".incoming"
"""Folder of transfers, below the asset's; what is complete or begun there is not transferred again."""
LISTING = ".listing.json"
"""What the patterns matched when the hub was asked last: the question, the commit and the files."""


class HubRepository:
    """The repository of one asset at one revision, and the ``folder`` of its files.

    With HF_HUB_OFFLINE set the hub is not asked: files that are in the folder are enough, and patterns
    mean the files that they matched before. HF_ENDPOINT names a mirror.

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
        self._place = f"{asset.repo_type}s/{asset.repo}"
        if asset.gated and not self._offline and not huggingface_hub.get_token():
            raise ConfigError(self._gated())

    def files(self) -> list[AssetFile]:
        """The files that the asset asks for; those of patterns with the hub's own hashes, if it has them."""
        if not self._asset.patterns:
            return self._asset.files
        matched = self._remembered() if self._offline else self._listed()
        named = {file.name for file in self._asset.files}
        return [*self._asset.files, *(file for file in matched if file.name not in named)]

    def bring(self, files: list[AssetFile]) -> Iterator[RecordFile]:
        """Download files, several at once, and move each to its place once it is verified.

        An interrupted download is continued by a later call.

        Raises:
            ConfigError: HF_HUB_OFFLINE is set; a licence or token is missing.
            ValueError: the hub cannot be reached, or a file is not there or not what it should be.
        """
        if self._offline:
            raise ConfigError(
                f"assets.{self._name}: HF_HUB_OFFLINE is set, and {self._folder / files[0].name} is not "
                f"there, or not what it should be: fetch it where the network is"
            )
        staging, commit = self._folder / STAGING, self._info.sha
        self._call(
            lambda: self._hub.snapshot_download(
                self._asset.repo,
                repo_type=self._asset.repo_type,
                revision=commit,
                allow_patterns=[glob.escape(file.name) for file in files],
                local_dir=staging,
            )
        )
        for file in files:
            arrived = inside(staging, file.name, f"assets.{self._name}.files")
            if not arrived.is_file():
                raise ValueError(f"{self._asset.repo} at {self._asset.revision} has no file {file.name}")
            try:
                found = verify(arrived, file, f"hf://{self._place}@{commit}/{file.name}")
            except ValueError:
                arrived.unlink()
                raise
            path = inside(self._folder, file.name, f"assets.{self._name}.files")
            path.parent.mkdir(parents=True, exist_ok=True)
            arrived.replace(path)
            yield found

    def clear(self) -> None:
        """Remove what the client keeps of transfers."""
        shutil.rmtree(self._folder / STAGING, ignore_errors=True)

    def _listed(self) -> list[AssetFile]:
        """What the patterns match on the hub, kept in the folder."""
        from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

        there = {file.rfilename: file for file in self._info.siblings or []}
        chosen = filter_repo_objects(there, allow_patterns=self._asset.patterns)
        found = [
            AssetFile(name=name, bytes=there[name].size or None, sha256=lfs.sha256 if lfs else None)
            for name in sorted(chosen)
            if not any(part.startswith(".") for part in name.split("/"))
            for lfs in [there[name].lfs]
        ]
        if not found:
            raise ConfigError(
                f"assets.{self._name}.patterns: nothing in {self._asset.repo} matches {self._asset.patterns}"
            )
        files = [file.model_dump(mode="json") for file in found]
        listing = {**self._question(), "commit": self._info.sha, "files": files}
        write_text(self._folder / LISTING, sealed(listing))
        return found

    def _remembered(self) -> list[AssetFile]:
        path = self._folder / LISTING
        listing = read_sealed(path, "a list of files on the hub") if path.exists() else {}
        if self._question().items() <= listing.items():
            return [AssetFile.model_validate(file) for file in listing["files"]]
        raise ConfigError(
            f"assets.{self._name}.patterns: HF_HUB_OFFLINE is set, and {self._folder} has no list of what "
            f"{self._asset.patterns} match in {self._asset.repo}: fetch it once where the network is"
        )

    def _question(self) -> dict[str, Any]:
        return {"repo": self._place, "revision": self._asset.revision, "patterns": self._asset.patterns}

    @cached_property
    def _info(self) -> Any:
        """The commit behind the revision (``sha``), one for all files, and its files (``siblings``)."""
        return self._call(
            lambda: self._hub.HfApi().repo_info(
                self._asset.repo,
                revision=self._asset.revision,
                repo_type=self._asset.repo_type,
                files_metadata=True,
            )
        )

    def _call(self, action: Callable[[], Result]) -> Result:
        from huggingface_hub import errors

        try:
            return action()
        except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
            # The client wraps the hub's refusals, with what it looked for here.
            reason = (isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__) or error
        told = _told(reason)
        response = getattr(reason, "response", None)
        if isinstance(reason, errors.GatedRepoError):
            raise ConfigError(self._gated())
        if isinstance(reason, OSError) and reason.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES):
            raise ValueError(f"{self._folder}: {reason.strerror}")
        if response is None:
            raise ValueError(f"the hub cannot be reached: {told}")
        if response.status_code == 401:
            raise ConfigError(
                f"assets.{self._name}: the hub does not know the token in HF_TOKEN (or this repository, "
                f"{self._asset.repo}); tokens are made at https://huggingface.co/settings/tokens"
            )
        raise ValueError(f"{self._asset.repo} at {self._asset.revision}: {told}")

    def _gated(self) -> str:
        page = self._asset.page or f"https://huggingface.co/{self._asset.repo}"
        return (
            f"assets.{self._name}: {self._asset.repo} is gated: accept its licence at {page}, "
            f"then set HF_TOKEN to a token of that account"
        )


def _told(error: BaseException) -> str:
    """What an error of the client says, in one line and without secrets."""
    return redacted(" ".join(str(error).split()))


def check_upload(repository: str) -> None:
    """Refuse an upload that the hub would refuse after all the work.

    Raises:
        ConfigError: not the name of a repository, or there is no token.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
        fits = "/" in repository
    except HFValidationError:
        fits = False
    if not fits:
        raise ConfigError(f"--push-to-hub {repository}: not the name of a repository, owner/name")
    if get_token() is None:
        raise ConfigError(
            f"--push-to-hub {repository}: no token of Hugging Face; set HF_TOKEN, or run `hf auth login`"
        )


def upload_folder(folder: Path, repository: str, public: bool = False) -> None:
    """Upload a folder's files in one commit: all of them are there afterwards, or none.

    Args:
        repository: owner/name, which is private; if it is not there it is made.
        public: it is public instead.

    Raises:
        ConfigError: the hub refuses, or cannot be reached; the repository is there, and is not as it is
            asked for.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, errors

    api = HfApi()
    files = [CommitOperationAdd(name, folder / name) for name in visible_files(folder)]
    try:
        url = api.create_repo(repository, private=not public, exist_ok=True)
        private = bool(api.repo_info(repository).private)
        if private and public:
            raise ValueError("it is private; leave --public out, or make it public in its settings")
        if not private and not public:
            raise ValueError("it is public; pass --public, or make it private in its settings")
        api.create_commit(repository, files, commit_message="Upload a pipeline by fewstep")
    except (errors.HTTPError, OSError, RuntimeError, ValueError) as error:  # type: ignore[attr-defined]
        raise ConfigError(f"--push-to-hub {repository}: nothing is uploaded: {_told(error)}") from None
    print(f"{url}: {len(files)} files uploaded")
