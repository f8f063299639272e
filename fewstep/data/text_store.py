"""A store of text embeddings: captions become indices, and indices what a network is conditioned on.

A manifest lies beside its parts, safetensors files of whole rows. A row is the context of one caption,
flattened, and behind it the pooled embedding; the last row is the empty caption's.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from pydantic import Field
from torch import Tensor

from ..common.files import verify_beside
from ..common.tensor_files import open_safetensors
from ..config import ConfigError, Strict
from ..config.base import read_spec
from ..config.specs import TextCard
from ..config.text import IN_MEMORY

HEX = r"^[0-9a-f]{64}$"
EMPTY = -1
"""The label of the empty caption."""
READERS = 4
"""Threads that read rows of a larger store."""
ABSENT = torch.iinfo(torch.int64).max
AGAIN = "make the store again (python -m fewstep.text)"


class Text(NamedTuple):
    """What a network is conditioned on, on the device in the stored dtype."""

    context: Tensor
    """(B, L, D); of kind words token numbers (B, length), int64."""
    pooled: Tensor
    """(B, P); of kind words (B, 0)."""


class TextContent(TextCard):
    """All that embeddings follow from, and their form. It is the same for stored and for live ones."""

    caption_list: str = Field(pattern=HEX, description="SHA-256 of the list, see `captions_sha256`")
    weights: dict[str, str] = Field(description="part of the encoder -> SHA-256 of its files")
    context: list[int] = Field(min_length=1, max_length=2, description="(L, D); of kind words (length,)")
    pooled: int = Field(ge=0, description="P")
    pooling: Literal["none", "end-token"] = Field(
        description="end-token: the projected states at the end of both CLIPs' texts, one behind the other"
    )
    dtype: Literal["float32", "bfloat16", "int64"]
    vocabulary: list[str] = Field(default=[], description="of kind words: tokens by their numbers")

    @property
    def digest(self) -> str:
        """SHA-256 of this content, by which training states and model cards name it."""
        own = {key: value for key, value in self.model_dump(mode="json").items() if key in _IDENTITY}
        return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()

    @property
    def row(self) -> int:
        """Numbers in a row."""
        return math.prod(self.context) + self.pooled

    @property
    def torch_dtype(self) -> torch.dtype:
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    @property
    def row_bytes(self) -> int:
        return self.row * int(self.torch_dtype.itemsize)

    def split(self, rows: Tensor) -> Text:
        """Rows (n, row) as context and pooled, views of them."""
        size = math.prod(self.context)
        return Text(rows[:, :size].unflatten(1, self.context), rows[:, size:])

    def check(self, card: TextCard, path: str | Path) -> None:
        """Refuse captions or an encoder other than ``card`` asks for.

        Raises:
            ValueError: naming the file, every field that differs, and both values.
        """
        asked = _flat(card)
        ours = _flat(TextCard(name=self.name, captions=self.captions, encoder=self.encoder))
        differences = [
            f"{path}: {key}: the store has {ours[key]!r}, the spec asks for {asked[key]!r}"
            for key in asked
            if ours[key] != asked[key]
        ]
        if differences:
            raise ValueError("\n".join(differences))


_IDENTITY = frozenset(TextContent.model_fields)


def _flat(card: TextCard) -> dict[str, Any]:
    """The card's values by their keys, those of the encoder as encoder.KEY."""
    encoder = {f"encoder.{key}": value for key, value in card.encoder.model_dump().items()}
    return card.model_dump(exclude={"encoder"}) | encoder


class TextPart(Strict):
    name: str = Field(description="file beside the manifest")
    bytes: int
    sha256: str = Field(pattern=HEX)
    rows: int = Field(gt=0)


class TextManifest(TextContent):
    """The content of a store, and its files."""

    too_long: dict[str, int] = Field(description="tokenizer -> captions that it cuts, being longer")
    parts: list[TextPart]


def captions_text(captions: Sequence[str]) -> str:
    """The list of captions as the text of a file."""
    return json.dumps(list(captions), ensure_ascii=False, indent=0) + "\n"


def captions_sha256(captions: Sequence[str]) -> str:
    """SHA-256 of the list of captions, `TextContent.caption_list`."""
    return hashlib.sha256(captions_text(captions).encode()).hexdigest()


def captions_file(manifest: Path) -> Path:
    """The file of the list of captions beside a manifest."""
    return manifest.with_name(f"{manifest.stem}.captions.json")


def read_text_manifest(path: str | Path) -> TextManifest:
    """Read a manifest and check that it agrees with itself.

    Raises:
        ConfigError: naming the file and the field.
    """
    manifest = read_spec(TextManifest, path, "a manifest of text embeddings")
    encoder = manifest.encoder
    words = encoder.kind == "words"
    for key, found, right in (
        ("context", manifest.context[0], encoder.length + (0 if words else encoder.t5_length)),
        ("context", len(manifest.context), 1 if words else 2),
        ("dtype", manifest.dtype, "int64" if words else encoder.dtype),
        ("parts", sum(part.rows for part in manifest.parts), manifest.captions + 1),
    ):
        if found != right:
            raise ConfigError(f"{path}: {key}: {found} disagrees with {right} in the same file")
    return manifest


class Rows(Protocol):
    """Where the rows of a store come from."""

    def read(self, numbers: Tensor, into: Tensor) -> Tensor:
        """The rows ``numbers`` (n,), int64 on the CPU, the last being the empty caption's.

        Args:
            into: memory (n, row) on the CPU that may be used for them.

        Returns:
            (n, row), on any device.
        """
        ...


class TextStore:
    """Embeddings of captions by their numbers: ``store(y)`` with y int64 (B,), -1 for the empty caption.

    Args:
        content: what the rows are.
        rows: where they come from.
        device: where they are needed.
        whole: all of them live on the device; else `load` brings those of one batch.
        name: of the store, for messages.
    """

    def __init__(
        self, content: TextContent, rows: Rows, device: torch.device | str, whole: bool, name: str
    ) -> None:
        self.content = content
        self.device = torch.device(device)
        self._rows, self._name = rows, name
        self._resident: Tensor | None = None
        """Numbers of the captions that are on the device, ascending, filled up with ABSENT."""
        self._loaded = torch.empty(0, dtype=torch.int64)
        if whole:
            numbers = torch.arange(content.captions + 1)
            self._text = content.split(self._read(numbers).to(self.device))
        else:
            self._reserve(1)
            self.load(torch.empty(0, dtype=torch.int64))

    def __deepcopy__(self, memo: dict[int, Any]) -> TextStore:
        """The store itself: a copy of a network shares it."""
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the content, see `TextContent.digest`."""
        return self.content.digest

    @property
    def card(self) -> dict[str, Any]:
        """Content and digest, as the card of a model file names them."""
        own = self.content.model_dump(mode="json", include=set(_IDENTITY))
        return own | {"digest": self.digest}

    @property
    def context_shape(self) -> tuple[int, ...]:
        """(L, D); of kind words (length,)."""
        return tuple(self.content.context)

    @property
    def pooled_width(self) -> int:
        return self.content.pooled

    def load(self, y: Tensor) -> None:
        """Bring the embeddings of the captions y (B,), int64, and of the empty one to the device.

        They take the place of those that were there, in the same memory as long as B does not grow. It
        reads y, and so waits for the device unless y is on the CPU. A store in memory does nothing.

        Raises:
            ValueError: a caption that the store does not have; a damaged file.
        """
        if self._resident is None:
            return
        last = self.content.captions
        y = y.detach().cpu().reshape(-1)
        if not ((y >= EMPTY) & (y < last)).all():
            raise ValueError(f"{self._name}: captions {y.tolist()} are not all in {EMPTY}..{last - 1}")
        numbers = torch.cat([torch.where(y == EMPTY, last, y), torch.tensor([last])]).unique()
        if torch.equal(numbers, self._loaded):
            return
        if len(y) + 1 > len(self._resident):
            self._reserve(len(y) + 1)
        count = len(numbers)
        context, pooled = self.content.split(self._read(numbers))
        padded = self._memory(len(self._resident), torch.int64).fill_(ABSENT)
        padded[:count] = numbers
        self._text.context[:count].copy_(context, non_blocking=True)
        self._text.pooled[:count].copy_(pooled, non_blocking=True)
        self._resident.copy_(padded, non_blocking=True)
        self._loaded = numbers

    def __call__(self, y: Tensor) -> Text:
        """Embeddings of the captions y (B,), int64 on the device; it does not wait for the device.

        Raises:
            ValueError: on the CPU: a caption that was not loaded; on a GPU its embedding is not a number.
            IndexError: a caption that a store in memory does not have.
        """
        last = self.content.captions
        # the empty caption's row is asked for by EMPTY alone
        row = torch.where(y == EMPTY, last, torch.where(y == last, last + 1, y))
        if self._resident is not None:
            place = torch.searchsorted(self._resident, row).clamp_(max=len(self._resident) - 1)
            found = self._resident[place] == row
            if y.device.type == "cpu" and not found.all():
                missing = y[~found].unique().tolist()
                raise ValueError(f"{self._name}: captions {missing} are not loaded; call load(y) before")
            row = torch.where(found, place, len(self._resident))
        return Text(self._text.context.index_select(0, row), self._text.pooled.index_select(0, row))

    def _reserve(self, capacity: int) -> None:
        """Memory for so many captions, and a row behind them for those that are not there."""
        content = self.content
        self._resident = torch.full((capacity,), ABSENT, device=self.device)
        context = torch.empty(capacity + 1, *content.context, dtype=content.torch_dtype, device=self.device)
        pooled = torch.empty(capacity + 1, content.pooled, dtype=content.torch_dtype, device=self.device)
        for tensor in (context, pooled):
            tensor[-1] = -1 if content.dtype == "int64" else math.nan
        self._text = Text(context, pooled)
        self._loaded = self._loaded[:0]

    def _read(self, numbers: Tensor) -> Tensor:
        return self._rows.read(numbers, self._memory((len(numbers), self.content.row)))

    def _memory(self, shape: int | tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        """Memory of the CPU from which a copy to the device needs no wait."""
        pinned = self.device.type == "cuda"
        return torch.empty(shape, dtype=dtype or self.content.torch_dtype, pin_memory=pinned)


def open_text(manifest: str | Path, card: TextCard, device: torch.device | str = "cpu") -> TextStore:
    """Open a store of the captions and the encoder that ``card`` names.

    Sizes are verified at opening; the parts' hashes too if the store fits into memory, and otherwise each
    row's checksum when it is read.

    Raises:
        ValueError: naming manifest, field and remedy: it is of other captions or another encoder, or a file
            is not what it says.
    """
    path = Path(manifest)
    content = read_text_manifest(path)
    content.check(card, path)
    whole = content.row_bytes * (content.captions + 1) <= IN_MEMORY
    return TextStore(content, StoredRows(path, content, hashed=whole), device, whole, str(path))


def read_captions_of(manifest: str | Path) -> list[str]:
    """The captions of a store, by their numbers.

    Raises:
        ValueError: they are missing, or not those of the manifest.
    """
    path = Path(manifest)
    verify_beside(path, captions_file(path), read_text_manifest(path).caption_list, None, AGAIN)
    captions: list[str] = json.loads(captions_file(path).read_text(encoding="utf-8"))
    return captions


class StoredRows:
    """The rows in the parts of a store, memory-mapped.

    Args:
        hashed: verify the parts' hashes now, instead of the rows' checksums at every reading.
    """

    def __init__(self, manifest: Path, content: TextManifest, hashed: bool) -> None:
        self._manifest, self._hashed = manifest, hashed
        self._starts = torch.tensor([0, *(part.rows for part in content.parts)]).cumsum(0)
        self._names = [part.name for part in content.parts]
        self._files = ExitStack()
        self._checksums: list[Tensor] = []
        self._slices = []
        for part in content.parts:
            path = manifest.with_name(part.name)
            verify_beside(manifest, path, part.sha256 if hashed else None, part.bytes, AGAIN)
            rows, checksums = open_part(self._files, path, content, part.rows)
            self._slices.append(rows)
            self._checksums.append(checksums)

    def read(self, numbers: Tensor, into: Tensor) -> Tensor:
        """See `Rows.read`; raises a ValueError for a damaged row."""
        places = torch.searchsorted(self._starts, numbers, right=True) - 1
        inside = (numbers - self._starts[places]).tolist()
        jobs = list(zip(places.tolist(), inside, into.unbind(0)))
        if self._hashed:
            for job in jobs:
                self._fetch(job)
        else:
            with ThreadPoolExecutor(READERS) as pool:
                list(pool.map(self._fetch, jobs))
        return into

    def _fetch(self, job: tuple[int, int, Tensor]) -> None:
        part, row, into = job
        into.copy_(self._slices[part][row])
        if not self._hashed and checksum(into) != int(self._checksums[part][row]):
            number = int(self._starts[part]) + row
            raise ValueError(f"{self._manifest}: {self._names[part]}: damaged: row {number}; {AGAIN}")


def open_part(files: ExitStack, path: Path, content: TextContent, rows: int) -> tuple[Any, Tensor]:
    """The rows of a part, to be sliced, and their checksums; ``files`` closes it.

    Raises:
        ValueError: it is damaged, or a part of another store.
    """
    file = files.enter_context(open_safetensors(path))
    found = (file.metadata() or {}).get("content")
    if found != content.digest:
        raise ValueError(f"{path}: content: {found}, not {content.digest}: of another store; {AGAIN}")
    rows_slice, checksums = file.get_slice("rows"), file.get_tensor("checksums")
    kinds = {"float32": "F32", "bfloat16": "BF16", "int64": "I64"}
    form = list(rows_slice.get_shape()), rows_slice.get_dtype(), list(checksums.shape)
    if form != ([rows, content.row], kinds[content.dtype], [rows]):
        raise ValueError(f"{path}: rows: {form} is not the form of a part with {rows} rows; {AGAIN}")
    return rows_slice, checksums


def checksum(row: Tensor) -> int:
    """CRC-32 of a row's bytes."""
    return zlib.crc32(row.view(torch.uint8).numpy())
