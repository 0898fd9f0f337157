"""Whether the end of a video file is missing, by the lengths that its container states."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"  # how a matroska file and its content begin
BOXES = (b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"uuid", b"sidx", b"mfra", b"styp", b"meta")
ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # of a wmv file, the size of the file among them
SYNC, TRANSPORT = 0x47, ((188, 0), (192, 4))  # length of the packets of ts and m2ts files, and where its byte stands
HEAD = 4096  # bytes
COPY_AGAIN = "copy or download it again"


def missing_end(path: Path) -> tuple[str, str] | None:
    """Say what of a file is missing.

    Args:
        path: The file.

    Returns:
        A clause about the file, as "was cut off after 10 of 20 bytes", and what to do; ``None`` if nothing is known
        to be missing, as in a container that states no lengths.
    """
    there = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(HEAD)
        parts, stated = _boxes(file, there) if head[4:8] in BOXES else ([], _stated(head))
    if stated > there:
        return f"was cut off after {there:,} of {stated:,} bytes", COPY_AGAIN
    if parts and not {b"moov", b"moof"} & set(parts):
        return "has no index, as one that is being written or was cut off", f"wait, or {COPY_AGAIN}"
    if any(_is_transport(head, length, place) and there % length for length, place in TRANSPORT):
        return f"was cut off within a packet, after {there:,} bytes", COPY_AGAIN
    return None


def _stated(head: bytes) -> int:
    """The size that the head of a matroska or wmv file states; 0 if it states none."""
    segment, properties = head.find(SEGMENT), head.find(ASF_PROPERTIES)
    if head.startswith(EBML) and segment >= 0:
        size = head[segment + len(SEGMENT) :][:8]
        count = 9 - size[0].bit_length()  # bytes of the length, by its leading zero bits
        length = int.from_bytes(size[:count], "big") & ((1 << 7 * count) - 1)
        return 0 if length == (1 << 7 * count) - 1 else segment + len(SEGMENT) + count + length
    return int.from_bytes(head[properties + 40 :][:8], "little") if properties >= 0 else 0


def _boxes(file: BinaryIO, there: int) -> tuple[list[bytes], int]:
    """The kinds of the boxes of an mp4 or mov file, and where the last one ends."""
    kinds, end = [], 0
    while end + 8 <= there:
        file.seek(end)
        length, kind = int.from_bytes(file.read(4), "big"), file.read(4)
        length = int.from_bytes(file.read(8), "big") if length == 1 else length
        if length < 8 or kind not in BOXES:
            break  # the last part, or something that was appended
        kinds.append(kind)
        end += length
    return kinds, end


def _is_transport(head: bytes, length: int, place: int) -> bool:
    first = head[place::length][: HEAD // length]
    return len(first) > 3 and all(byte == SYNC for byte in first)
