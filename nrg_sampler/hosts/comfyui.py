"""Guide what ComfyUI samples, after its classifier-free guidance.

Nothing of ComfyUI is imported; what is used of its objects is named here. Its samplers hold the latents as the model
reads them (what ``process_in`` of the model's latent format returns), which for the flow models that both host is the
normalised space of the diffusers pipeline, hence that of a latent reward. A VAE decodes what ``process_out`` returns.
ComfyUI runs nodes in inference mode, whose tensors autograd does not take, so weights are loaded or copied outside.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from nrg_sampler.flow import clean_from, velocity_from_clean
from nrg_sampler.guidance.memory import DirectionMemory
from nrg_sampler.guidance.resolved import resolve
from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.guidance.step import guided_velocity
from nrg_sampler.guidance.trace import GuidanceTrace
from nrg_sampler.rewards.base import Conditioning, RewardHooks, check_reward
from nrg_sampler.rewards.by_name import names_and_weights, reward_for, sees_frames
from nrg_sampler.rewards.pixel import PixelReward

WRAPPED = "outer_sample"  # comfy.patcher_extension.WrappersMP.OUTER_SAMPLE: around a whole run
KEY = "nrg_sampler"
SAME_LEVEL = 1e-6


class ComfyVae(nn.Module):
    """A VAE of ComfyUI, called as a ``PixelReward`` calls one of diffusers.

    Args:
        vae: With ``first_stage_model``, ``process_output``, which maps its frames to ``[0, 1]``, and
            ``latent_channels``. The weights are copied, since ComfyUI moves its own and made them in inference mode.

    Attributes:
        latent_format: Of the model that is guided; its ``process_out`` returns the latents that the VAE decodes.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        with torch.inference_mode(False):
            self.first_stage_model = copy.deepcopy(vae.first_stage_model).to("cpu").requires_grad_(False)
        self.config = SimpleNamespace(latent_channels=getattr(vae, "latent_channels", None))
        self._process_output = vae.process_output
        self.latent_format: Any = None

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """Decode latents as the model reads them to frames in ``[-1, 1]``."""
        decoded = self.first_stage_model.decode(self.latent_format.process_out(latents))
        return (self._process_output(decoded) * 2 - 1,)


def load_for_comfyui(name: str, vae: Any = None) -> Any:
    """Load a reward by its name, on the CPU.

    Args:
        name: As :func:`nrg_sampler.rewards.by_name.reward_for` takes it.
        vae: ComfyUI's VAE of the model that is to be guided; only rewards that see frames need it.

    Raises:
        ValueError: If there is no such reward, or it sees frames and there is no VAE.
    """
    seeing = [one for one in names_and_weights(name) if sees_frames(one)]
    if seeing and vae is None:
        raise ValueError(
            f"Expected a VAE for {' and '.join(seeing)}, which see frames, but got none; connect the VAE of the "
            "model to `vae`."
        )
    with torch.inference_mode(False):
        host = SimpleNamespace(vae=ComfyVae(vae) if seeing else None, _execution_device="cpu")
        return reward_for(host, name)


@dataclass
class ComfyGuidance:
    """Guide a model of ComfyUI.

    Args:
        reward: The reward.
        conditioning: The positive prompt, one row.
        guidance: The settings.
    """

    reward: Any
    conditioning: Conditioning
    guidance: RewardGuidance

    def attached(self, model: Any) -> Any:
        """Return a guided clone of a ``ModelPatcher``, which stays as it is.

        Raises:
            ValueError: If the model samples no rectified flow, or reward, prompt and settings do not fit it or each
                other.
        """
        _require_flow(model)
        hooks = check_reward(self.reward)
        if hooks.needs_prompts and self.conditioning.prompts is None:
            raise ValueError(
                f"Expected the text of the prompt for a reward with {', '.join(hooks.axes)}, which reads it, but got "
                "none; write it into `text`, or connect there the text that is encoded."
            )
        latent_format = model.get_model_object("latent_format")
        reward = in_space_of(self.reward, latent_format)
        resolve(self.guidance, reward)
        if not isinstance(reward, PixelReward):
            check_space(reward, latent_format)
            if self.conditioning.prompt_embeds is None and hasattr(getattr(reward, "config", None), "text_dim"):
                raise ValueError(
                    "Expected the conditioning of the positive prompt for a latent reward, which reads it, but got "
                    "none; connect it to `positive`."
                )
        guided = model.clone()
        run = _Run(reward, hooks, self.conditioning, self.guidance, model.load_device)
        guided.set_model_sampler_post_cfg_function(run.after_cfg)
        guided.add_wrapper_with_key(WRAPPED, KEY, run.around)
        return guided


class _Run:
    """What ComfyUI calls: around each run, and after classifier-free guidance in each evaluation of the model."""

    def __init__(
        self,
        reward: Any,
        hooks: RewardHooks,
        conditioning: Conditioning,
        guidance: RewardGuidance,
        device: torch.device,
    ) -> None:
        self._reward, self._conditioning, self._guidance, self._device = reward, conditioning, guidance, device
        self._trace = GuidanceTrace(hooks.axes, guidance.scale)
        self._memory = DirectionMemory()

    def around(self, run: Any, *args: Any, **kwargs: Any) -> Any:
        """Sample with the reward on the device, moved there first for ComfyUI to plan with what memory is left."""
        self._trace = GuidanceTrace(self._trace.axes, self._guidance.scale)
        if self._guidance.scale != 0:
            self._move(self._device)
        try:
            finished = run(*args, **kwargs)
        finally:
            self._memory.last = None
            self._move("cpu")
        self._trace.warn()
        return finished

    def after_cfg(self, args: dict[str, Any]) -> Tensor:
        """Take and return the predicted clean latents, as ComfyUI's flow models state them."""
        latents, clean, sigma = args["input"], args["denoised"], args["sigma"]
        if self._guidance.scale == 0:
            return clean  # type: ignore[no-any-return]
        index, steps = place(sigma, args["model_options"]["transformer_options"]["sample_sigmas"])
        video, predicted = _as_video(latents), _as_video(clean)
        velocity = velocity_from_clean(video, predicted, sigma)
        guided = guided_velocity(
            video,
            velocity,
            sigma,
            self._reward,
            self._conditioning.for_batch(len(video)),
            self._guidance,
            step_index=index,
            num_inference_steps=steps,
            trace=self._trace,
            memory=self._memory,
        )
        if guided is velocity:
            return clean  # type: ignore[no-any-return]
        return clean_from(video, guided, sigma).view_as(clean).to(clean.dtype)

    def _move(self, device: str | torch.device) -> None:
        if isinstance(self._reward, nn.Module):
            with torch.inference_mode(False):
                self._reward.to(device)


def in_space_of(reward: Any, latent_format: Any) -> Any:
    """Return the reward for models with this latent format; one on frames shares its weights with the one given."""
    if not isinstance(reward, PixelReward):
        return reward
    vae: Any = reward.decoder.vae
    theirs = getattr(latent_format, "latent_channels", None)
    if vae.config.latent_channels not in (None, theirs):
        raise ValueError(
            f"Expected the VAE of the model, whose latents have {theirs} channels, but got one with "
            f"{vae.config.latent_channels}; connect the VAE that decodes its samples."
        )
    shared = {id(part): part for part in (reward.judge, vae.first_stage_model)}
    with torch.inference_mode(False):  # the format has tensors too
        own = copy.deepcopy(reward, shared)
        own.decoder.vae.latent_format = copy.deepcopy(latent_format)
    return own


def check_space(reward: Any, latent_format: Any) -> None:
    """Refuse a model with other latents than those a latent reward was trained on.

    A format that leaves latents as they are says nothing: the VAEs of such models, as LTX, normalise inside.

    Raises:
        ValueError: If their channels or their normalisation differ.
    """
    config = getattr(reward, "config", None) or {}
    own, theirs = config.get("in_channels"), getattr(latent_format, "latent_channels", None)
    if None not in (own, theirs) and own != theirs:
        raise ValueError(
            f"Expected a model with {own} latent channels, as this reward was trained on, but the model has {theirs}; "
            "use a reward that was trained for its latents."
        )
    space = config.get("latent_space")
    if not space or theirs is None:
        return
    probe = torch.zeros(1, theirs, *[1] * getattr(latent_format, "latent_dimensions", 2))
    zero, one = (latent_format.process_in(probe + value).flatten() for value in (0.0, 1.0))
    slope = one - zero
    if bool((slope == 1).all()) and bool((zero == 0).all()):
        return
    mean = torch.as_tensor(space.get("latents_mean", space.get("shift_factor") or 0.0))
    deviation = torch.as_tensor(space.get("latents_std", 1.0)) / (space.get("scaling_factor") or 1.0)
    expected = (1 / deviation).expand(theirs), (-mean / deviation).expand(theirs)
    if not all(torch.allclose(*pair, rtol=1e-3, atol=1e-3) for pair in zip((slope, zero), expected, strict=True)):
        raise ValueError(
            "Expected a model whose latents are normalised as those that this reward was trained on, but its format "
            f"is {type(latent_format).__name__}; use a reward that was trained for its VAE."
        )


def place(sigma: Tensor, sigmas: Sequence[float] | Tensor) -> tuple[int, int]:
    """Return the number of the denoising step that evaluates the model at ``sigma``, and how many there are.

    Samplers of second order also evaluate it between the levels of their schedule; that belongs to the step before.
    """
    levels = torch.as_tensor(sigmas).tolist()
    level = float(sigma.max())
    passed = sum(one >= level - SAME_LEVEL for one in levels[:-1])
    return max(passed - 1, 0), len(levels) - 1


def conditioning_of(positive: Any, prompt: str = "") -> Conditioning:
    """Return the first of ComfyUI's conditionings, with the text of the prompt where there is one."""
    embeds, others = positive[0] if positive else (None, {})
    return Conditioning(
        embeds,
        prompt_mask=others.get("attention_mask"),
        pooled=others.get("pooled_output"),
        prompts=(prompt,) if prompt.strip() else None,
    )


def _as_video(latents: Tensor) -> Tensor:
    return latents if latents.ndim == 5 else latents.unsqueeze(2)  # (B, C, T, H, W), an image with T = 1


def _require_flow(model: Any) -> None:
    sampling = model.get_model_object("model_sampling")
    if "CONST" not in {kind.__name__ for kind in type(sampling).__mro__}:  # x_sigma = (1 - sigma) x_0 + sigma noise
        raise ValueError(
            f"Expected a model that samples a rectified flow, such as Wan, FLUX or SD3, but {type(sampling).__name__} "
            "is none; guide another model."
        )
