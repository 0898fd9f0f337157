from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nrg_sampler import files


def test_a_file_appears_when_its_block_ends(tmp_path: Path) -> None:
    with files.replacing(tmp_path / "a.txt") as partial:
        partial.write_text("new")
        assert not (tmp_path / "a.txt").exists()
    assert (tmp_path / "a.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_block_leaves_the_old_file_and_no_partial_one(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a.txt").write_text("old")

    def fail_halfway():
        with files.replacing(tmp_path / "a.txt") as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        fail_halfway()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_writable_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    folder = files.writable_folder(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert not list(folder.iterdir())


def test_a_folder_below_a_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"Expected a folder that can be written to, but .*file/sub cannot: "):
        files.writable_folder(tmp_path / "file" / "sub")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A red circle, moving right!", "a-red-circle-moving-right"),
        ("../../etc/passwd", "etc-passwd"),
        ("ein schöner Kreis", "ein-schöner-kreis"),
        ("…", "video"),
        ("word " * 40, "-".join(["word"] * 9)),
        ("x" * 200, "x" * 48),
    ],
)
def test_slug_is_a_safe_short_file_name(text: str, expected: str) -> None:
    assert files.slug(text) == expected


def test_a_fingerprint_changes_with_a_name_and_with_a_byte(tmp_path: Path) -> None:
    def of(name: str, text: str) -> str:
        folder = tmp_path / f"{name}-{text}"
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / name).write_text(text)
        return files.fingerprint(folder)

    first = of("a", "1")
    assert first == files.fingerprint(tmp_path / "a-1")
    assert len({first, of("a", "2"), of("b", "1")}) == 3


def test_a_large_file_counts_with_its_size_and_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "WHOLE_FILE_LIMIT", 100)
    monkeypatch.setattr(files, "END_LENGTH", 10)

    def of(data: bytes) -> str:
        (tmp_path / "weights").write_bytes(data)
        return files.fingerprint(tmp_path / "weights")

    plain = of(bytes(200))
    assert of(bytes(201)) != plain
    assert of(b"\1" + bytes(199)) != plain
    assert of(bytes(199) + b"\1") != plain
    assert of(bytes(100) + b"\1" + bytes(99)) == plain


def gone() -> int:
    """Return the number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_process_left_is_removed_when_the_folder_is_used_again(tmp_path: Path) -> None:
    own = files.partial_path(tmp_path / "a.mp4")
    left = [own.with_name(own.name.replace(str(os.getpid()), str(gone()))) for own in (own, own.with_suffix(".json"))]
    others = [tmp_path / name for name in (f"a.{gone()}@another-machine.partial.mp4", "a.partial.mp4", "a.1.partial")]
    for file in (own, *left, *others):
        file.write_text("half")
    files.writable_folder(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([own, *others])


@pytest.mark.parametrize("links", [True, False])
def test_a_finished_file_takes_the_first_free_name_with_what_belongs_to_it(
    tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError("no links here")))
    (tmp_path / "a.mp4").write_text("first")
    (tmp_path / "a-2.json").write_text("another's manifest")
    finished = files.partial_path(tmp_path / "a.mp4")
    finished.write_text("new")
    finished.with_suffix(".json").write_text("its manifest")
    assert files.with_free_name(finished, tmp_path / "a.mp4") == tmp_path / "a-3.mp4"
    content = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert content == {
        "a.mp4": "first",
        "a-2.json": "another's manifest",
        "a-3.mp4": "new",
        "a-3.json": "its manifest",
    }


def test_many_at_once_never_get_one_name(tmp_path: Path) -> None:
    def finish(index: int) -> Path:
        finished = tmp_path / f"{index}.unfinished.mp4"
        finished.write_text(str(index))
        return files.with_free_name(finished, tmp_path / "a.mp4")

    with ThreadPoolExecutor(16) as pool:
        names = list(pool.map(finish, range(64)))
    assert len(set(names)) == 64
    assert sorted(int(file.read_text()) for file in tmp_path.iterdir()) == list(range(64))


def full_disk(write: str) -> str:
    """Return a program whose files cannot grow beyond 8 KiB, as on a full disk, and that prints the error."""
    return f"""
import resource, signal, sys, torch
from pathlib import Path
from safetensors.torch import save_file
from nrg_sampler.files import replacing, writing
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
folder = Path(sys.argv[1])
try:
    with replacing(folder / "a.bin") as file:
        {write}
except OSError as error:
    print(error, list(folder.iterdir()))
"""


@pytest.mark.parametrize(
    "write",
    [
        "torch.save({'a': torch.zeros(9000)}, file)",
        "save_file({'a': torch.zeros(9000)}, file)",
        "file.write_bytes(bytes(9000))",
    ],
    ids=["torch", "safetensors", "python"],
)
@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are those of Unix")
def test_a_full_disk_is_one_sentence_whoever_writes(tmp_path: Path, write: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", full_disk(write), str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(
        f"Expected room to write {tmp_path / 'a.bin'}, but the disk or a limit is full; free "
    )
    assert done.stdout.endswith("kept. []\n")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_text_is_read_with_its_line_ends(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes("a é\r\nb".encode(encoding))
    assert files.read_text(tmp_path / "a.txt") == "a é\r\nb"


@pytest.mark.parametrize(
    ("encoding", "reason"),
    [("utf-16", "in UTF-16; save it in UTF-8"), ("utf-16-le", "in UTF-16"), ("latin-1", "can't decode")],
)
def test_a_text_in_another_encoding_is_refused(tmp_path: Path, encoding: str, reason: str) -> None:
    (tmp_path / "a.txt").write_bytes("path_A,path_B,é".encode(encoding))
    with pytest.raises(ValueError, match=reason):
        files.read_text(tmp_path / "a.txt")
