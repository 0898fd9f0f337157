"""Files that appear whole or not at all, and names and fingerprints for them."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WHOLE_FILE_LIMIT = 64 * 2**20  # bytes; a larger file is fingerprinted by its size and both ends
END_LENGTH = 2**20


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` and move it there when the block ends without an exception.

    A reader never sees half a file, and an interrupted or failed run leaves whatever was there before.

    Args:
        path: Where the finished file belongs; its folder must exist.
    """
    partial = _partial(path)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def writable_folder(folder: Path) -> Path:
    """Make ``folder`` and prove that a file can be written there, before any work is spent on one.

    Raises:
        ValueError: If the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"Expected a folder that can be written to, but {folder} cannot: {reason}.") from error
    return folder


def writable_file(path: Path) -> Path:
    """Make the folder of ``path`` and prove that the file can be written, before any work is spent on it.

    Raises:
        ValueError: If the folder cannot be made or written to, a folder has that name, or it is too long.
    """
    writable_folder(path.parent)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        _partial(path).touch()
        _partial(path).unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(
            f"Expected a file that can be written, but {path} cannot: {reason}; choose another name."
        ) from error
    return path


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.stem}.{os.getpid()}.partial{path.suffix}")


def slug(text: str, max_length: int = 48) -> str:
    """Turn a prompt into a file name of lower-case words and hyphens, cut at a word."""
    words = re.findall(r"[^\W_]+", text.lower())
    name = ""
    for word in words:
        if name and len(name) + 1 + len(word) > max_length:
            break
        name = f"{name}-{word}" if name else word[:max_length]
    return name or "video"


def fingerprint(folder: Path) -> str:
    """Hash the files of a model folder, so that a later run can tell whether it has the same model.

    Files above 64 MiB count with their name, size, first and last MiB only: reading tens of gigabytes before every
    video would cost more than it tells.

    Args:
        folder: A folder, or a single file.

    Returns:
        SHA-256 in hexadecimal over the relative names and contents.
    """
    digest = hashlib.sha256()
    files = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        size = path.stat().st_size
        name = path.name if path == folder else path.relative_to(folder).as_posix()
        digest.update(f"{name}\0{size}\0".encode())
        with open(path, "rb") as file:
            if size <= WHOLE_FILE_LIMIT:
                digest.update(file.read())
            else:
                digest.update(file.read(END_LENGTH))
                file.seek(-END_LENGTH, os.SEEK_END)
                digest.update(file.read())
    return digest.hexdigest()
