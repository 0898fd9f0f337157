"""A preference file with stand-ins for its clips, for tests that never decode them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write_pairs(folder: Path, prompts: Sequence[str], clips: int) -> Path:
    """Write stand-ins for clips and a preference file that compares two of them under each prompt."""
    for index in range(clips):
        (folder / f"{index}.mp4").write_bytes(bytes([index]))
    labels = ("A", "B", "same")
    lines = ["path_A,path_B,prompt,VQ,MQ,TA"]
    for index, prompt in enumerate(prompts):
        said = ",".join(labels[(index + axis) % 3] for axis in range(3))
        lines.append(f"{index % clips}.mp4,{(index + 1) % clips}.mp4,{prompt},{said}")
    file = folder / "pairs.csv"
    file.write_text("\n".join(lines) + "\n")
    return file
