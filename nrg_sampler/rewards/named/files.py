"""Where the files of a published reward are: in a folder, in the cache of the Hub, or in that of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

# Either of these.
CLIP_TOKENIZER = (("tokenizer.json",), ("vocab.json", "merges.txt"))
BERT_TOKENIZER = (("tokenizer.json",), ("vocab.txt",))


@dataclass(frozen=True)
class Place:
    """A folder or a Hub id.

    Args:
        where: Path of the folder, or the Hub id.
        download: Whether the Hub may be asked for what is not in its local cache.
    """

    where: str
    download: bool = False

    @property
    def folder(self) -> Path | None:
        """The folder, if it is one."""
        return Path(self.where) if Path(self.where).is_dir() else None

    def file(self, name: str) -> Path | None:
        """Return a file of that name, or ``None`` if it is not there.

        Raises:
            ValueError: If it may be downloaded only by those who accepted its terms.
        """
        if self.folder is not None:
            return self.folder / name if (self.folder / name).is_file() else None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import GatedRepoError

        try:
            return Path(hf_hub_download(self.where, name, local_files_only=not self.download))
        except GatedRepoError as error:
            raise ValueError(
                f"Expected {name} of {self.where}, but that is gated; accept its terms on its page and log in with "
                "`hf auth login`, or pass a folder that has it."
            ) from error
        except (OSError, ValueError):  # absent, no such id, no network
            return None

    def __str__(self) -> str:
        if self.folder is not None:
            return f"the folder {self.where}"
        return f"{self.where} on the Hub" if self.download else f"the local cache of {self.where}"


class TorchCache(Place):
    """The folder to which ``torch.hub.load_state_dict_from_url`` downloads."""

    def __init__(self) -> None:
        super().__init__(str(Path(torch.hub.get_dir()) / "checkpoints"))

    def file(self, name: str) -> Path | None:
        """Return a file of that name, or ``None`` if it is not there."""
        file = Path(self.where) / name
        return file if file.is_file() else None

    def __str__(self) -> str:
        return self.where


def first(names: Sequence[str], places: Sequence[Place], advice: str) -> Path:
    """Return the first of several files that is there, whose contents are the same.

    Args:
        names: In the order of preference.
        places: Likewise.
        advice: What to do if there is none, the end of a sentence without its full stop.

    Raises:
        ValueError: If there is none, with what was looked for and where.
    """
    for place in places:
        for name in names:
            if (file := place.file(name)) is not None:
                return file
    raise _absent(" or ".join(names), places, advice)


def tokenizer_folder(places: Sequence[Place], kinds: Sequence[Sequence[str]], advice: str) -> Path:
    """Return the folder with a tokenizer's files.

    Args:
        places: In the order of preference.
        kinds: The files that make one, several together or others instead.
        advice: What to do if there is none, the end of a sentence without its full stop.

    Raises:
        ValueError: If there is none.
    """
    for place in places:
        for names in kinds:
            files = [place.file(name) for name in names]
            if files[0] is not None and None not in files:
                place.file("tokenizer_config.json")  # brings it beside the others, where there is one
                return files[0].parent
    what = ", or ".join(" and ".join(names) for names in kinds)
    raise _absent(f"{what},", places, advice)


def _absent(what: str, places: Sequence[Place], advice: str) -> ValueError:
    looked = ", then ".join(dict.fromkeys(map(str, places)))
    return ValueError(f"Expected {what} in {looked}, but it is not there; {advice}.")
