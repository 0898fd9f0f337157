"""Folders in which one process at a time may write.

The lock is the operating system's, on the folder itself: no file is left behind, and it is gone with the process that
held it, however that ended. Where a system or file system has no such locks nothing is locked.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

if sys.platform != "win32":
    import fcntl

TAKEN = (errno.EWOULDBLOCK, errno.EACCES)


class FolderLock:
    """Keeps a folder for this run until it is released, leaves its ``with`` block, or is forgotten.

    Args:
        folder: An existing folder that a run writes to, and where another one would go on.

    Raises:
        ValueError: If another run has it, in this process or in another.
    """

    def __init__(self, folder: Path) -> None:
        """Take the lock."""
        self._file: int | None = None
        if sys.platform != "win32":
            self._file = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self.release()
                if error.errno in TAKEN:
                    raise ValueError(
                        f"Expected a folder that no other run is writing to, but one is at work in {folder}; wait "
                        "until it has ended, or name another folder as `out`."
                    ) from error

    def release(self) -> None:
        """Give the folder back; once is enough."""
        held, self._file = self._file, None
        if held is not None:
            os.close(held)

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Wait until no other run is in such a block for ``folder``, for changes that take a moment.

    Args:
        folder: An existing folder that several runs may share.
    """
    if sys.platform == "win32":
        yield
        return
    file = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
