"""Models with named axes, saved as a config and the weights that it describes."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin

from nrg_sampler.checkpoints import first_few

LOADER = "diffusers.models.modeling_utils"  # the name of its logger
# What the loader says, the second without low_cpu_mem_usage.
OTHER_SHAPE = re.compile(r"because (\S+) expected shape|size mismatch for (\S+):")


class MismatchedWeightsError(ValueError):
    """A config that describes other weights than stand beside it."""


class ConfiguredModel(ModelMixin, ConfigMixin):
    """A model with ``axes``, and ``mean`` and ``std`` or ``None``, in its config."""

    config: Any

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes."""
        return tuple(self.config.axes)

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each raw axis over the base model's samples; 0 where none is stored."""
        return tuple(self.config.mean or (0.0,) * len(self.axes))

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each there; 1 where none is stored."""
        return tuple(self.config.std or (1.0,) * len(self.axes))

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], **options: Any) -> Any:
        """Load a model as diffusers does, but refuse weights that are not the ones its config describes.

        Args:
            source: A folder or a Hub id.
            **options: As in diffusers.

        Raises:
            MismatchedWeightsError: If a weight is missing, too many or of another shape.
        """
        with_info = options.pop("output_loading_info", False)
        folder = os.path.join(source, options.get("subfolder") or "").rstrip("/")
        with _without_lists_of_weights():
            try:
                model, info = super().from_pretrained(source, output_loading_info=True, **options)
            except (ValueError, RuntimeError) as error:
                # Of several weights of another shape diffusers names the first, and advises to overwrite them.
                if found := OTHER_SHAPE.search(str(error)):
                    raise _mismatched(folder, f"have another shape of {found[1] or found[2]}") from error
                raise
        for problem, names in (
            ("lack", info.get("missing_keys")),
            ("have in addition", info.get("unexpected_keys")),
        ):
            if names:
                raise _mismatched(folder, f"{problem} {first_few(sorted(names))}")
        return (model, info) if with_info else model


class RecommendingModel(ConfiguredModel):
    """A reward whose config has what it recommends to its users."""

    @property
    def recommended_scale(self) -> float | tuple[float, ...]:
        """The default guidance strength, one number or one per axis."""
        scale = self.config.recommended_scale
        return tuple(map(float, scale)) if isinstance(scale, Sequence) else float(scale)

    @property
    def recommended_damping(self) -> tuple[float, ...] | None:
        """Powers of ``1 - sigma``, one per axis."""
        damping = self.config.recommended_damping
        return None if damping is None else tuple(damping)

    @property
    def recommended_fading(self) -> tuple[float, ...] | None:
        """Powers of ``sigma``, one per axis."""
        fading = self.config.recommended_fading
        return None if fading is None else tuple(fading)


def _mismatched(folder: str, problem: str) -> MismatchedWeightsError:
    return MismatchedWeightsError(
        f"Expected the weights that config.json describes in {folder!r}, but they {problem}; "
        "restore the config.json that was saved with them, or copy the folder again."
    )


@contextmanager
def _without_lists_of_weights() -> Iterator[None]:
    """Keep diffusers from listing every weight that does not match: the error names the first."""

    def other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Some weights of")

    logger = logging.getLogger(LOADER)
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)
