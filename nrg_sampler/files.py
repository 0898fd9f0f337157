"""Files that appear whole or not at all, and names and fingerprints for them."""

from __future__ import annotations

import codecs
import errno
import hashlib
import os
import platform
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

LACKING_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PARTIAL = re.compile(r"\.(?P<process>[1-9]\d{0,8})@(?P<machine>[\w-]+)\.partial(\.\w+)?$")
WHOLE_FILE_LIMIT = 64 * 2**20  # bytes; a larger file is fingerprinted by its size and both ends
END_LENGTH = 2**20


class NoRoomError(OSError):
    """A file for which the disk, a quota or a limit of the process has no room."""

    def __str__(self) -> str:
        return (
            f"Expected room to write {self.filename}, but {self.strerror}; free some and run the same command again: "
            "what was finished before is kept."
        )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` and move it there when the block ends without an exception.

    A reader never sees half a file, and an interrupted or failed run leaves whatever was there before.

    Args:
        path: Where the finished file belongs; its folder must exist.
    """
    partial = partial_path(path)
    try:
        with writing(path):
            yield partial
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Let whatever finds no room for ``path`` fail as an ``OSError`` that says so; torch and safetensors raise others.

    Args:
        path: The file or folder that is written in the block.

    Raises:
        NoRoomError: If the disk or a quota is full.
    """
    try:
        yield
    except Exception as error:
        if _lacks_room(error):
            raise NoRoomError(errno.ENOSPC, "the disk or a limit is full", str(path)) from error
        raise


def _lacks_room(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in LACKING_ROOM
    # What torch says of any write that fails, and safetensors of the system's error.
    codes = [f"os error {code})" for code in LACKING_ROOM]
    return any(text in str(error) for text in ("PytorchStreamWriter failed", "inline_container", *codes))


def writable_folder(folder: Path) -> Path:
    """Make ``folder`` and prove that a file can be written there, before any work is spent on one.

    What a process that was killed has left half-written there is removed.

    Raises:
        ValueError: If the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        remove_stale_partials(folder)
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
        partial_path(path).touch()
        partial_path(path).unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(
            f"Expected a file that can be written, but {path} cannot: {reason}; choose another name."
        ) from error
    return path


def partial_path(path: Path) -> Path:
    """Return where ``path`` is kept until it is finished: beside it, named after this process and machine."""
    return path.with_name(f"{path.stem}.{os.getpid()}@{_machine()}.partial{path.suffix}")


def remove_stale_partials(folder: Path) -> list[Path]:
    """Remove unfinished files of processes of this machine that are gone, and return them."""
    stale = []
    for file in folder.glob("*.partial*"):
        if file.is_file() and is_stale(file):
            file.unlink(missing_ok=True)
            stale.append(file)
    return stale


def is_stale(path: Path) -> bool:
    """Return whether ``path`` is named by :func:`partial_path` after a process of this machine that is gone."""
    match = PARTIAL.search(path.name)
    return match is not None and match["machine"] == _machine() and not psutil.pid_exists(int(match["process"]))


def _machine() -> str:
    return re.sub(r"[^\w-]", "-", platform.node()) or "here"


def with_free_name(finished: Path, path: Path) -> Path:
    """Move a finished file to ``path``, or to the first numbered name beside it that nothing has.

    Two processes never get the same name. Files beside ``finished`` with its name and another suffix come along, and
    a name counts as taken if any of them would be overwritten.

    Args:
        finished: The file, in the folder of ``path``.
        path: What it is to be called.

    Returns:
        What it is called.
    """
    companions = [file for file in finished.parent.iterdir() if file.stem == finished.stem and file != finished]
    number, free = 1, path
    while any(free.with_suffix(file.suffix).exists() for file in companions) or not _moved(finished, free):
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    for file in companions:
        os.replace(file, free.with_suffix(file.suffix))
    return free


def _moved(file: Path, path: Path) -> bool:
    """Move a file unless something is there already, and return whether it was moved."""
    try:
        os.link(file, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        os.replace(file, path)
        return True
    file.unlink()
    return True


def read_text(file: Path) -> str:
    """Read a text in UTF-8, with or without a byte order mark, its line ends as they are.

    Raises:
        ValueError: If it is in another encoding.
    """
    data = file.read_bytes()
    nulls = sorted(data[place::2].count(0) for place in (0, 1))
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or (not nulls[0] and 4 * nulls[1] > len(data)):
        raise ValueError("it is in UTF-16; save it in UTF-8")
    return data.decode("utf-8-sig")


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
