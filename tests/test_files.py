from __future__ import annotations

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
