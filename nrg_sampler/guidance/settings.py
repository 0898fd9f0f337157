"""The settings of the guidance, which know nothing of tensors.

They take effect in :mod:`nrg_sampler.guidance.step`, one denoising step at a time.

Reference:
    Liu et al., 2025, arXiv:2501.13918, Eq. 11.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nrg_sampler.entries import shown
from nrg_sampler.guidance.fields import Choice, Number, Switch, Text, Whole, expect, setting, settings_of
from nrg_sampler.guidance.presets import preset_named
from nrg_sampler.guidance.trust import PowersLike, read_powers
from nrg_sampler.rewards.frames import ALL, read_frames
from nrg_sampler.rewards.pixel_options import PixelOptions, read_source
from nrg_sampler.rewards.weights import RewardWeights, WeightsLike

POWERS = ("damping", "fading")


@dataclass(frozen=True)
class RewardGuidance:
    """Say how strongly, when and within which limits the reward moves the velocity.

    The defaults are those of the preset ``"balanced"``. Experimental settings gained nothing with any reward that
    ships.

    Args:
        weights: One weight per axis: ``"1:1:1"``, ``"VQ=1,TA=0.5"``, a dict, a sequence; ``None`` is 1 for every axis.
            ``"auto"`` lets the reward propose them from the prompt, see :mod:`nrg_sampler.rewards.gate`.
        scale: Strength; 0 is none and a negative one pushes away from the reward.
        start: First guided moment as a fraction of the denoising steps, in [0, 1].
        stop: Moment from which guidance is off, in [0, 1], at least ``start``.
        every: Evaluate the reward in each n-th denoising step only.
        reuse: Push with the last direction in the steps between, rather than leave them unguided.
        max_coefficient: Upper limit of ``sigma / (1 - sigma)``, above 0; ``None`` for no limit.
        max_push: Upper limit of the push's norm as a fraction of the velocity's norm, above 0; ``None`` for no limit.
        damping: Exponent p >= 0 of a factor ``(1 - sigma) ** p`` on the gradient of an axis, which trusts it less in
            noise: one number for all axes, or one for each as for ``weights`` (axes not named are not damped);
            ``None`` takes what the reward recommends. From 1 on the factor of the gradient,
            ``sigma / (1 - sigma) * (1 - sigma) ** p``, is bounded without a clamp.
        fading: Exponent q >= 0 of a factor ``sigma ** q``, which trusts it less where the picture is nearly settled;
            as ``damping``.
        calibrated: Measure the reward in its stored standard deviations and ``scale`` in its recommended scale.
            If ``False`` the reward is used raw and ``scale`` is the paper's w.
        balanced: Experimental: give the gradients of the weighted axes one norm, so that the weights alone set their
            shares.
        conflicts: Experimental: what to do where two axes pull apart. ``"sum"`` adds them up all the same,
            ``"project"`` first takes out of each what goes against the other.
        floor: Axes that the push must not lower to first order, such as ``"TA"`` or ``"VQ,TA"``, weighted or not;
            ``None`` for no floor.
        parallel: Experimental: share kept of the push's part along the predicted clean latents, in [0, 1]; less
            saturates less.
        disagreement: Experimental: push along the mean of the reward's members minus this multiple of their standard
            deviation, axis by axis, 0 or more, so that what they disagree about pushes less. Needs a reward with
            several members; see :mod:`nrg_sampler.rewards.ensemble`.
        lookahead: Where the reward is read, as a share in [0, 1] of the way that the velocity points: at 0 the latents
            themselves, as in the paper; beyond that the latents that the step leads to at ``(1 - lookahead) * sigma``,
            where there is less noise to read through; at 1 the predicted clean latents, for a reward that knows no
            noise. The model is not differentiated.
        smoothing: Experimental: share of the noise that is exchanged, in [0, 1], for the gradient to be an average
            over noises; 0 takes the gradient at the latents themselves.
        smoothing_samples: Experimental: gradients in that average, each at the cost of one.
        forward: ``"separate"``: the reward runs its own forward pass. ``"shared"``: it reads the features that the
            denoiser computes anyway, inside ``attach`` and with a reward made for it; only the backward pass is extra.
        frames: Latent frames that the reward looks at in a step: ``"all"``, ``"first"``, ``"middle"``, ``"every:4"``
            with the first of them in turns, ``"random"``, one drawn for each step, or ``"turns"``, one after the
            other; ``None`` takes what the reward recommends, which is all for rewards on latents.
        crop: Share of the height and of the width that the reward reads, above 0 and at most 1; steps take turns in
            the place. Both save time and memory with long and large videos.
        offload: For a reward on pixels: keep its judge in the memory of the processor and bring it to the device for
            each gradient.
        half: For a reward on pixels: compute judge and decoder in bfloat16, as ``torch.autocast`` does.
        tiny_vae: For a reward on pixels: folder or Hub id of a small autoencoder with the same latents, such as an
            ``AutoencoderTiny``, that decodes for the gradient.

    Raises:
        ValueError: If a setting is out of range.
    """

    weights: WeightsLike = setting(
        None,
        Text("VQ:MQ:TA", "1 for every axis", lambda name, given: RewardWeights.parse(given)),
        "strength",
        "one weight an axis, as 1:1:1 or VQ=1,TA=0.5, or auto for what the reward proposes",
        shown=True,
    )
    scale: float = setting(1.0, Number(), "strength", "strength; 0 is the unguided pipeline", shown=True)
    start: float = setting(
        0.0, Number(0, 1), "when", "guide from this fraction of the steps on", label="Window start", shown=True
    )
    stop: float = setting(
        1.0, Number(0, 1), "when", "guide up to this fraction of the steps", label="Window stop", shown=True
    )
    every: int = setting(2, Whole(), "when", "evaluate the reward in every n-th step only", label="Every n-th step")
    reuse: bool = setting(
        True, Switch(), "when", "push with the last direction in the steps between", label="Reuse the direction"
    )
    max_coefficient: float | None = setting(
        None,
        Number(0, above=True, none="no limit", slider=(0.01, 1000.0, 0.1)),
        "limits",
        "upper limit of sigma / (1 - sigma)",
        label="Clamp",
    )
    max_push: float | None = setting(
        1.0,
        Number(0, above=True, none="no limit", slider=(0.01, 10.0, 0.05)),
        "limits",
        "upper limit of the push, in norms of the velocity",
        label="Cap",
        shown=True,
    )
    damping: PowersLike = setting(
        None,
        Text("P", "as the reward recommends", read_powers),
        "limits",
        "weaken gradients by (1 - sigma) to this power, as 1 or VQ=0,TA=1.5",
        label="Damping",
    )
    fading: PowersLike = setting(
        None,
        Text("Q", "as the reward recommends", read_powers),
        "limits",
        "weaken gradients by sigma to this power, as 2 or VQ=4,TA=0",
        label="Fading",
    )
    calibrated: bool = setting(
        True, Switch(), "strength", "measure the strength in units of the recommended one", label="Calibrated"
    )
    balanced: bool = setting(
        False, Switch(), "experimental", "give the gradients of the axes one norm", label="Balance the axes"
    )
    conflicts: str = setting(
        "sum",
        Choice(("sum", "project")),
        "experimental",
        "where two axes pull apart, add them up or project",
        label="Conflicts",
    )
    floor: str | Sequence[str] | None = setting(
        None,
        Text("AXES", "no floor", lambda name, axes: _axes(axes)),
        "limits",
        "axes that the push must not lower, as TA or VQ,TA",
        label="Floor",
        shown=True,
    )
    parallel: float = setting(
        1.0,
        Number(0, 1),
        "experimental",
        "share kept of the push along the predicted clean latents",
        label="Parallel share",
    )
    disagreement: float = setting(
        0.0,
        Number(0, slider=(0.0, 3.0, 0.25)),
        "experimental",
        "push by the mean of the reward's members minus this many of their deviations",
        label="Disagreement",
    )
    lookahead: float = setting(
        0.0,
        Number(0, 1),
        "reading",
        "read the latents this far along their path; 1 is the predicted clean ones",
        label="Look ahead",
    )
    smoothing: float = setting(
        0.0,
        Number(0, 1),
        "experimental",
        "share of the noise that is exchanged, for an average of gradients",
        label="Smoothing",
    )
    smoothing_samples: int = setting(
        4, Whole(slider=(1, 16)), "experimental", "gradients in that average", label="Samples of it"
    )
    forward: str = setting(
        "separate",
        Choice(("separate", "shared")),
        "reading",
        "let the reward run on its own, or read the features of the denoiser",
        label="Forward pass",
    )
    frames: str | None = setting(
        None,
        Text("FRAMES", "as the reward recommends", read_frames),
        "reading",
        "latent frames that the reward looks at: all, first, middle, every:4, random or turns",
        label="Frames",
        option="reward-frames",
    )
    crop: float = setting(
        1.0,
        Number(0, 1, above=True, slider=(0.1, 1.0, 0.05)),
        "reading",
        "share of height and width that the reward reads",
        label="Crop",
    )
    offload: bool = setting(False, Switch(), "reading", "keep a judge of pixels off the device between gradients")
    half: bool = setting(False, Switch(), "reading", "compute a judge of pixels and the decoder in bfloat16")
    tiny_vae: str | None = setting(
        None,
        Text("PATH", "the pipeline's own VAE", read_source),
        "reading",
        "folder or Hub id of a small autoencoder that decodes for a judge of pixels",
    )

    def __post_init__(self) -> None:
        for name, stated in settings_of(type(self)).items():
            object.__setattr__(self, name, stated.checked(getattr(self, name)))
        expect(self.start <= self.stop, "start", f"at most `stop` ({self.stop:g})", self.start)
        if self.lookahead == 1:
            expect(self.smoothing == 0, "smoothing", "0 with lookahead=1, where no noise is left", self.smoothing)
        if self.forward == "shared":  # the denoiser sees the noisy latents, once
            expect(self.smoothing == 0, "smoothing", "0 with forward='shared'", self.smoothing)
            expect(self.lookahead == 0, "lookahead", "0 with forward='shared'", self.lookahead)
            expect(self.frames in (None, ALL), "frames", "all with forward='shared'", self.frames)
            expect(self.crop == 1, "crop", "1 with forward='shared'", self.crop)
            for name in ("offload", "half", "tiny_vae"):
                expect(not getattr(self, name), name, "left out with forward='shared'", getattr(self, name))
        if self.scale != 0:
            self.axis_weights.require_some()

    @classmethod
    def paper(cls, scale: float = 100.0, weights: WeightsLike = None) -> RewardGuidance:
        """Return the published algorithm: every step but sigma = 1, raw reward, no limit and nothing else added."""
        bounds: dict[str, Any] = {"max_coefficient": None, "max_push": None, "damping": 0.0, "fading": 0.0}
        return cls.preset("best", weights=weights, scale=scale, calibrated=False, **bounds)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> RewardGuidance:
        """Return a trade-off between gain and cost by its name.

        Args:
            name: ``"fast"`` evaluates the reward in every second of the first third of the steps, ``"balanced"`` in
                every second step, both reusing its direction in between; ``"best"`` evaluates it in every step.
            **overrides: Further settings, which win.

        Raises:
            ValueError: If there is no such preset or a setting is out of range.
        """
        return cls(**{**preset_named(name), **overrides})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON values; ``RewardGuidance(**settings)`` reads them back."""
        weights, floor = self.axis_weights, _axes(self.floor)
        return {
            **vars(self),
            "weights": str(weights) if weights.values or weights.auto else None,
            "floor": None if floor is None else ",".join(floor),
            **{name: _plain(getattr(self, name)) for name in POWERS},
        }

    @property
    def pixel_options(self) -> PixelOptions:
        """How a reward on pixels computes."""
        return PixelOptions(self.offload, self.half, self.tiny_vae)

    @property
    def axis_weights(self) -> RewardWeights:
        """The weights, as they were parsed."""
        assert isinstance(self.weights, RewardWeights)
        return self.weights

    def skips(self, step_index: int, num_inference_steps: int) -> str | None:
        """Return why a denoising step is left unguided: ``"window"`` or ``"every"``; ``None`` if it is not."""
        if not self.start <= step_index / num_inference_steps < self.stop:
            return "window"
        return "every" if step_index % self.every and not self.reuse else None

    def reuses(self, step_index: int) -> bool:
        """Return whether a guided step takes the last direction, if there is one yet."""
        return self.reuse and step_index % self.every != 0

    def evaluated_steps(self, num_inference_steps: int) -> int:
        """Return in how many steps of a run the reward is evaluated."""
        if self.scale == 0:
            return 0
        guided = [step for step in range(num_inference_steps) if self.skips(step, num_inference_steps) is None]
        return sum(not self.reuses(step) or step == guided[0] for step in guided)

    def gradients(self, num_inference_steps: int) -> int:
        """Return how many gradients of the reward one run takes."""
        return self.evaluated_steps(num_inference_steps) * (self.smoothing_samples if self.smoothing else 1)


def _axes(axes: str | Sequence[str] | None) -> tuple[str, ...] | None:
    names = axes.split(",") if isinstance(axes, str) else axes or ()
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"Expected `floor` as axes, such as 'TA' or 'VQ,TA', but got {shown(axes)}.")
    return tuple(name.strip() for name in names if name.strip()) or None


def _plain(powers: float | RewardWeights | None) -> float | str | None:
    return str(powers) if isinstance(powers, RewardWeights) else powers
