"""Weights as a PEFT training published them, with the names of the installed transformers and merged adapters."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from nrg_sampler.checkpoints import first_few

ADAPTER = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.default)?(?:\.weight)?$")
# Kept by PEFT beside what replaced it, or needed for writing text only.
UNUSED = re.compile(r"(^|\.)original_module\.|^lm_head\.")


@dataclass
class PublishedWeights:
    """What a checkpoint holds.

    Args:
        weights: Whole weights, by their current name.
        adapters: Low-rank changes ``(A, B)``, by the current name of the weight they change.
        unused: Keys that scoring does not need.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    adapters: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> PublishedWeights:
        """Sort the entries of a state dict."""
        found = cls()
        for key, value in state.items():
            name = current_name(key)
            adapter = ADAPTER.match(name)
            if UNUSED.search(name):
                found.unused.append(key)
            elif adapter:
                side = "transposed " * bool(adapter["embedding"]) + adapter["side"]
                found.adapters.setdefault(f"{adapter['module']}.weight", {})[side] = value
            else:
                found.weights[name] = value
        return found

    @property
    def keys(self) -> int:
        """Number of keys in the checkpoint."""
        return len(self.weights) + sum(map(len, self.adapters.values())) + len(self.unused)

    def merged(self, scaling: float, base: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        r"""Return whole weights, :math:`W + s\,B A` where there is an adapter.

        Args:
            scaling: ``s``.
            base: Weights of the untuned model, for those that are not in the checkpoint.

        Raises:
            ValueError: If an adapter is half there or changes a weight that is nowhere.
        """
        result = {**(base or {}), **self.weights}
        for name, sides in self.adapters.items():
            if len(sides) != 2 or name not in result:
                lacks = f"the weight {name}" if len(sides) == 2 else f"one half of the adapter of {name}"
                raise ValueError(f"Expected a complete checkpoint, but {lacks} is missing; download it again.")
            result[name] = result[name] + scaling * _change(sides).to(result[name].dtype)
        return result


def current_name(key: str) -> str:
    """Return a key's name in Qwen2-VL since transformers 4.52, which moved both towers under ``model``."""
    name = key.removeprefix("base_model.model.")
    name = name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")
    if name.startswith("visual."):
        return f"model.{name}"
    inner = name.removeprefix("model.")
    if inner != name and not inner.startswith(("visual.", "language_model.")):
        return f"model.language_model.{inner}"
    return name


def _change(sides: Mapping[str, Tensor]) -> Tensor:
    if "A" in sides:
        return sides["B"].float() @ sides["A"].float()
    return (sides["transposed B"].float() @ sides["transposed A"].float()).T


def require_same_keys(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: Path) -> None:
    """Refuse a checkpoint with other weights than the model has.

    Raises:
        ValueError: If a key is missing or too many, or a shape differs; it is named.
    """
    shapes = [name for name in expected if name in found and found[name].shape != expected[name].shape]
    for problem, names in (
        ("lacks", [name for name in expected if name not in found]),
        ("has too many: ", [name for name in found if name not in expected]),
        ("has another shape of", shapes),
    ):
        if names:
            raise ValueError(
                f"Expected the {len(expected)} weights of the model in {source}, but it {problem} {first_few(names)}; "
                "download the folder again, or name the base model that it was trained from."
            )


def load_state(path: Path) -> dict[str, Tensor]:
    """Read a ``.pth`` or ``.safetensors`` file; tensors only. A ``.pth`` may be of torch's format before 1.6.

    Raises:
        ValueError: If it is missing or damaged.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # each format fails in ways of its own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"Expected weights in {path}, but it cannot be read ({reason}); copy it again.") from error
    return dict(state)
