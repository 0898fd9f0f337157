"""One run at a time writes to a folder, and no lock outlives its run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nrg_sampler.locks import FolderLock, in_turn

HOLD = """
import sys, time
from pathlib import Path
from nrg_sampler.locks import FolderLock
with FolderLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    with FolderLock(tmp_path):
        with pytest.raises(ValueError, match=rf"no other run is writing to, but one is at work in {tmp_path}; wait"):
            FolderLock(tmp_path)
        FolderLock(tmp_path.parent).release()
    with FolderLock(tmp_path):
        assert not list(tmp_path.iterdir())


def test_a_killed_process_leaves_no_lock_behind(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match="one is at work"):
            FolderLock(tmp_path)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        FolderLock(tmp_path).release()


def test_a_lock_that_is_forgotten_is_given_back(tmp_path: Path) -> None:
    held = FolderLock(tmp_path)
    del held
    FolderLock(tmp_path).release()


def test_changes_of_a_moment_wait_for_each_other(tmp_path: Path) -> None:
    order: list[str] = []
    with in_turn(tmp_path):
        other = threading.Thread(target=lambda: _append_in_turn(tmp_path, order))
        other.start()
        other.join(timeout=0.2)
        order.append("first")
    other.join()
    assert order == ["first", "second"]


def _append_in_turn(folder: Path, order: list[str]) -> None:
    with in_turn(folder):
        order.append("second")
