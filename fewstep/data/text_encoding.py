"""From captions to a store of their embeddings, or to embeddings that are made when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ..common.files import atomic, sha256, write_text
from ..config import ConfigError, dump
from ..config.specs import TextCard, TextSpec
from ..config.text import IN_MEMORY
from .captions import read_captions, read_prompts
from .text_encoders import CaptionEncoder, open_text_encoder
from .text_store import (
    TextContent,
    TextManifest,
    TextPart,
    TextStore,
    captions_file,
    captions_sha256,
    captions_text,
    checksum,
    open_part,
)

PART_BYTES = 512 << 20
"""Size of a part, of which a stopped encoding loses at most one."""


def text_content(
    card: TextCard, captions: Sequence[str], encoder: CaptionEncoder, origin: str
) -> TextContent:
    """What embeddings of these captions follow from.

    Args:
        origin: where the captions come from, for messages.

    Raises:
        ConfigError: there are more or fewer than ``card`` says.
    """
    if len(captions) != card.captions:
        raise ConfigError(f"{origin}: {len(captions)} captions, the spec says captions: {card.captions}")
    words = card.encoder.kind == "words"
    return TextContent(
        name=card.name,
        captions=card.captions,
        encoder=card.encoder,
        caption_list=captions_sha256(captions),
        weights=encoder.weights,
        context=encoder.context,
        pooled=encoder.pooled,
        pooling="none" if words else "end-token",
        dtype="int64" if words else card.encoder.dtype,
        vocabulary=encoder.vocabulary,
    )


def write_store(
    content: TextContent, captions: Sequence[str], encoder: CaptionEncoder, out: Path
) -> TextManifest:
    """Encode the captions, and the empty one, to parts beside ``out``, and write last the manifest ``out``.

    Parts of the same content that are there already, from an encoding that was stopped, are verified and
    kept.

    Raises:
        ConfigError: as for `tell_too_long`.
        ValueError: embeddings that are not finite.
    """
    too_long = tell_too_long(content, captions, encoder)
    texts = [*captions, ""]
    rows = max(1, PART_BYTES // content.row_bytes)
    parts = []
    with tqdm(total=len(texts), unit="caption", desc=content.name, mininterval=1.0) as bar:
        for number, start in enumerate(range(0, len(texts), rows)):
            part, path = texts[start : start + rows], _part_path(out, number)
            if not _is_whole(path, content, len(part)):
                made = torch.empty(len(part), content.row, dtype=content.torch_dtype)
                for row, caption in zip(made, part, strict=True):
                    row.copy_(encode_row(content, encoder, caption))
                    bar.update()
                _write_part(path, content, made)
            else:
                bar.update(len(part))
            entry = TextPart(name=path.name, bytes=path.stat().st_size, sha256=sha256(path), rows=len(part))
            parts.append(entry)
    for number in count(len(parts)):  # of a larger store that was here before
        if not (left := _part_path(out, number)).exists():
            break
        left.unlink()
    write_text(captions_file(out), captions_text(captions))
    manifest = TextManifest(
        **content.model_dump(exclude={"encoder"}), encoder=content.encoder, too_long=too_long, parts=parts
    )
    write_text(out, dump(manifest))
    return manifest


def tell_too_long(content: TextContent, captions: Sequence[str], encoder: CaptionEncoder) -> dict[str, int]:
    """For each tokenizer, how many captions it cuts; the shares are printed."""
    found = encoder.too_long(captions)
    for tokenizer, longer in found.items():
        if longer:
            print(
                f"warning: {content.name}: {longer} of {len(captions)} captions "
                f"({longer / len(captions):.1%}) are longer than {tokenizer} keeps, and are cut"
            )
    return found


def encode_row(content: TextContent, encoder: CaptionEncoder, caption: str) -> Tensor:
    """The row of a caption, on the CPU.

    Raises:
        ValueError: it is not finite, or not of the form of the content.
    """
    context, pooled = encoder(caption)
    row = torch.cat([context.flatten(), pooled.flatten()]).cpu()
    if row.shape != (content.row,) or row.dtype != content.torch_dtype:
        raise ValueError(
            f"{content.name}: context: {row.dtype} of {list(context.shape)} is not of the content"
        )
    if not row.isfinite().all():
        raise ValueError(f"{content.name}: encoder.dtype: not finite in {content.dtype}: caption {caption!r}")
    return row


def _part_path(manifest: Path, number: int) -> Path:
    return manifest.with_name(f"{manifest.stem}.{number:05d}.safetensors")


def _is_whole(path: Path, content: TextContent, rows: int) -> bool:
    """Whether a part of this content is there, each row with its checksum."""
    if not path.is_file():
        return False
    try:
        with ExitStack() as files:
            stored, checksums = open_part(files, path, content, rows)
            return all(checksum(stored[row]) == int(checksums[row]) for row in range(rows))
    except ValueError:
        return False


def _write_part(path: Path, content: TextContent, rows: Tensor) -> None:
    checksums = torch.tensor([checksum(row) for row in rows], dtype=torch.int64)
    with atomic(path) as temporary:
        save_file({"rows": rows, "checksums": checksums}, temporary, metadata={"content": content.digest})


def encode_text(
    spec: TextSpec, record: Path, weights: Path | None, out: Path, device: torch.device | str = "cpu"
) -> TextManifest:
    """Write the store that ``spec`` asks for, see `write_store`.

    Args:
        record: of the asset that has the captions.
        weights: the encoder's model file, or the record of its fetched weights.

    Raises:
        ConfigError: captions or an encoder that are not what the spec says.
    """
    captions, encoder, content = _opened(spec, record, weights, device)
    return write_store(content, captions, encoder, out)


def open_live_text(
    spec: TextSpec, record: Path, weights: Path | None, device: torch.device | str = "cpu"
) -> TextStore:
    """A store without files: `TextStore.load` encodes. On one machine it gives what the stored one does, bit
    for bit, and has the same digest. Arguments and errors are those of `encode_text`.
    """
    captions, encoder, content = _opened(spec, record, weights, device)
    tell_too_long(content, captions, encoder)
    return TextStore(content, LiveRows(content, captions, encoder), device, whole=False, name=content.name)


def _opened(
    spec: TextSpec, record: Path, weights: Path | None, device: torch.device | str
) -> tuple[list[str], CaptionEncoder, TextContent]:
    if spec.dataset is not None:
        captions = read_captions(spec.dataset, record)
    elif spec.prompts is not None:
        captions = [prompt["prompt"] for prompt in read_prompts(spec.prompts, record)]
    else:
        raise ConfigError(f"{spec.text.name}: the spec names neither dataset nor prompts")
    encoder = open_text_encoder(spec.text.encoder, weights, spec.backbone, captions, device)
    return captions, encoder, text_content(spec.text, captions, encoder, str(record))


class LiveRows:
    """Rows that are made when they are read, and kept as far as memory for them suffices."""

    def __init__(self, content: TextContent, captions: Sequence[str], encoder: CaptionEncoder) -> None:
        self._content, self._texts, self._encoder = content, [*captions, ""], encoder
        self._kept: dict[int, Tensor] = {}
        self._most = max(1, IN_MEMORY // content.row_bytes)

    def read(self, numbers: Tensor, into: Tensor) -> Tensor:
        """See `text_store.Rows.read`."""
        for place, number in enumerate(numbers.tolist()):
            into[place] = self._row(number)
        return into

    def _row(self, number: int) -> Tensor:
        if number in self._kept:
            return self._kept[number]
        row = encode_row(self._content, self._encoder, self._texts[number])
        if len(self._kept) < self._most:
            self._kept[number] = row
        return row
