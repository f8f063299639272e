"""Tar files that may come from anywhere."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator


def members(tar: tarfile.TarFile, length: int) -> Iterator[tarfile.TarInfo]:
    """The members in order, which must lie in the file as their headers say: a size may be a lie.

    Args:
        length: bytes of the tar file.

    Raises:
        tarfile.TarError: a member that does not, or is sparse, so that zeros without end may be read from it.
    """
    for member in tar:
        if member.issparse() or member.offset_data + member.size > length:
            raise tarfile.ReadError(f"member {member.name} is sparse, or ends outside of the file")
        yield member
