"""NRGFlowPipeline: a diffusers pipeline that has a reward among its components."""

from __future__ import annotations

import copy
import functools
import inspect
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_type_hints

import torch
from diffusers import DiffusionPipeline

from nrg_sampler.checkpoints import (
    BUNDLED,
    SAMPLING_FILE,
    pipeline_source,
    read_sampling,
    readable,
    require_weights,
)
from nrg_sampler.files import writable_folder
from nrg_sampler.guidance.memory import DirectionMemory
from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.guidance.trace import GuidanceTrace
from nrg_sampler.hosts.attach import attach
from nrg_sampler.hosts.families import family_of
from nrg_sampler.hosts.pipeline_class import pipeline_class
from nrg_sampler.hosts.prompts import arguments_of, called
from nrg_sampler.hosts.subclassing import guided_subclass
from nrg_sampler.hosts.vocabulary import is_closed, require_known_words
from nrg_sampler.json_text import to_json
from nrg_sampler.rewards.base import check_reward
from nrg_sampler.rewards.by_name import RewardLike, require_known, reward_for
from nrg_sampler.rewards.latent_prm import LatentPRM
from nrg_sampler.rewards.pixel import PixelReward
from nrg_sampler.rewards.weights import WeightsLike

SAVED_NAME = "reward"  # entry of `sampling.json`, the names of a reward
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "token")


class NRGFlowPipeline(DiffusionPipeline):
    """Sample videos with reward guidance.

    Made by ``from_pretrained`` or ``from_pipe``, it *is* the pipeline it was made from (``isinstance`` says both),
    takes the same arguments and saves to a folder that plain diffusers loads too::

        pipe = NRGFlowPipeline.from_pretrained("shapes")
        video = pipe("a red circle moving right", reward_weights="1:1:1", reward_scale=1.0).frames[0]
        print(pipe.trace)

    Attributes:
        reward_model: The reward, a component like any other; ``None`` if there is none.
        trace: What the guidance did in the last call; ``None`` before the first.
        direction_memory: Holds the direction of the reward from step to step; a callback that drops or exchanges
            samples on the way lets it follow with ``direction_memory.keep(rows)``.
        sampling_defaults: Arguments used where a caller gives none, read from ``sampling.json`` in the folder.
    """

    reward_model: Any = None
    trace: GuidanceTrace | None = None
    direction_memory: DirectionMemory
    sampling_defaults: Mapping[str, Any] = MappingProxyType({})
    _sampling: Mapping[str, Any] = MappingProxyType({})

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        reward_model: RewardLike = "auto",
        **kwargs: Any,
    ) -> NRGFlowPipeline:
        """Load a pipeline and its reward.

        Args:
            pretrained_model_name_or_path: ``"shapes"`` for the bundled model, a folder or a Hub id.
            reward_model: A reward, its name, folder or Hub id, several names with weights, ``None`` for none, or
                ``"auto"``: the one saved with the pipeline, if there is one.
            **kwargs: Passed to diffusers, such as ``dtype``; the bundled model is loaded in float32 by default.

        Raises:
            ValueError: If the pipeline is not supported, its files are damaged or the reward is for other latents.
        """
        source = pipeline_source(pretrained_model_name_or_path)
        if pretrained_model_name_or_path == BUNDLED:
            kwargs.setdefault("dtype", torch.float32)
            reward_model = BUNDLED if reward_model == "auto" else reward_model
        if not (own_reward := isinstance(reward_model, str) and reward_model == "auto"):
            require_known(reward_model)
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        with readable(source):
            guided = guided_class(pipeline_class(source, hub))
            components = {} if own_reward else {"reward_model": None}
            # past this override, to the pipeline's own loader
            pipe = super(NRGFlowPipeline, guided).from_pretrained(source, **components, **kwargs)
        if "device_map" not in kwargs:  # which may leave weights on the disk
            require_weights(pipe.components, source)
        pipe._set_sampling(read_sampling(source, **hub))
        if own_reward and pipe.reward_model is None and SAVED_NAME in pipe._sampling:
            pipe._set_reward(pipe._sampling[SAVED_NAME])
        elif own_reward:
            _freeze(pipe.reward_model)
        else:
            pipe._set_reward(reward_model)
        return pipe  # type: ignore[no-any-return]

    @classmethod
    def from_pipe(cls, pipeline: Any, reward_model: RewardLike = None) -> NRGFlowPipeline:
        """Return a guided pipeline that shares every component with ``pipeline``, which stays as it is.

        Nothing is moved, cast or copied, and offloading goes on as it was set up.

        Args:
            pipeline: A diffusers pipeline.
            reward_model: A reward, its name, folder or Hub id, or several; by default the one ``pipeline`` has.

        Raises:
            ValueError: If the pipeline is not supported or the reward is for other latents.
        """
        guided = copy.copy(pipeline)
        base: Any = type(guided)  # of an attached pipeline its own class, as copies of it have
        guided.__class__ = guided_class(base)
        if not isinstance(pipeline, NRGFlowPipeline):
            folder = pipeline.config.get("_name_or_path") or ""
            guided._set_sampling(read_sampling(folder) if os.path.isdir(folder) else {})
        wanted = reward_model if reward_model is not None else getattr(pipeline, "reward_model", None)
        guided._set_reward(reward_for(pipeline, wanted))  # the copy's list of components is complete only then
        return guided  # type: ignore[no-any-return]

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write the pipeline with its reward and ``sampling.json`` to a folder; arguments as in diffusers.

        Of a reward made from names they are written, not the weights.

        Raises:
            ValueError: If the folder cannot be written.
        """
        folder = writable_folder(Path(save_directory))
        reward = self.reward_model
        name = reward.source if isinstance(reward, (LatentPRM, PixelReward)) else None
        others = {key: value for key, value in self._sampling.items() if key != SAVED_NAME}
        if sampling := {**others, SAVED_NAME: name} if name else others:  # first, so that a push takes it along
            (folder / SAMPLING_FILE).write_text(to_json(sampling, indent=2) + "\n")
        self.register_modules(reward_model=None if name else reward)
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.register_modules(reward_model=reward)

    def __call__(
        self,
        *args: Any,
        reward_weights: WeightsLike = None,
        reward_scale: float | None = None,
        reward_guidance: RewardGuidance | None = None,
        reward_prompts: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Sample as the pipeline does, guided by ``reward_model``.

        Args:
            *args: As the pipeline's own.
            reward_weights: One weight per axis of the reward, such as ``"1:1:1"``; replaces those of
                ``reward_guidance``.
            reward_scale: Strength, likewise; 0 samples exactly as the pipeline does without this package.
            reward_guidance: All other settings.
            reward_prompts: The text of the prompts, for a reward that reads it, where the pipeline is given features
                alone; one for each prompt, in place of ``prompt``.
            **kwargs: As the pipeline's own; what is left out comes from ``sampling_defaults``.

        Returns:
            What the pipeline returns.

        Raises:
            ValueError: If guidance is asked for and there is no reward, a setting is out of range or the prompt has
                words the model never saw.

        Warns:
            UserWarning: If there is no reward and no argument about it: what is sampled is not guided.
        """
        guidance = _combined(reward_guidance, reward_weights, reward_scale)
        if guidance.scale != 0 and self.reward_model is None:
            _require_no_wish(reward_guidance, reward_weights, reward_scale)
            guidance = replace(guidance, scale=0.0)
        signature = inspect.signature(super().__call__)
        arguments = signature.bind_partial(*args, **kwargs).arguments
        self._check_words(arguments)
        defaults = {name: value for name, value in self.sampling_defaults.items() if name not in arguments}
        self.direction_memory = DirectionMemory()
        attached = attach(self, self.reward_model, guidance, memory=self.direction_memory, prompts=reward_prompts)
        call = arguments_of(signature, *args, **kwargs, **defaults)
        with attached as self.trace, called(self, call):
            return super().__call__(*args, **kwargs, **defaults)

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes, an accelerator before the CPU; the reward need not know where it is."""
        devices = [module.device for module in self._own_modules()]
        accelerators = [device for device in devices if device.type not in ("cpu", "meta")]
        return next(iter([*accelerators, *devices]), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the pipeline's weights; the reward's may be another."""
        return next((module.dtype for module in self._own_modules()), torch.float32)

    def to(self, *args: Any, **kwargs: Any) -> NRGFlowPipeline:
        """Move and cast every component, as diffusers does; a reward needs neither ``device`` nor ``dtype`` for it."""
        reward = self.reward_model
        if not isinstance(reward, torch.nn.Module) or (hasattr(reward, "device") and hasattr(reward, "dtype")):
            return super().to(*args, **kwargs)  # type: ignore[no-any-return]
        held = self.__dict__.pop("reward_model")  # past __setattr__, which would write it to the pipeline's config
        try:
            super().to(*args, **kwargs)
        finally:
            self.__dict__["reward_model"] = held
        kwargs.pop("silence_dtype_warnings", None)
        reward.to(*args, **kwargs)
        return self

    def _own_modules(self) -> Iterator[Any]:
        names, _ = self._get_signature_keys(self)
        parts = (getattr(self, name, None) for name in names if name != "reward_model")
        return (part for part in parts if isinstance(part, torch.nn.Module))

    @classmethod
    def _members(cls, base: Any) -> dict[str, Any]:
        return {
            "__module__": __name__,
            "__init__": _init_with_reward(base),
            "__call__": _call_with_reward(base),
            "_optional_components": [*base._optional_components, "reward_model"],
            "_exclude_from_cpu_offload": [*base._exclude_from_cpu_offload, "reward_model"],
        }

    def _check_words(self, arguments: Mapping[str, Any]) -> None:
        if not self._sampling.get("closed_vocabulary", is_closed(self.tokenizer)):
            return
        texts = [arguments.get(name) or [] for name in ("prompt", "negative_prompt")]
        require_known_words(self.tokenizer, [t for text in texts for t in ([text] if isinstance(text, str) else text)])

    def _set_sampling(self, settings: Mapping[str, Any]) -> None:
        taken = inspect.signature(super().__call__).parameters
        self._sampling = settings
        self.sampling_defaults = {name: value for name, value in settings.items() if name in taken}

    def _set_reward(self, reward: Any) -> None:
        reward = reward_for(self, reward)
        if reward is not None:
            check_reward(reward, self)
        self.register_modules(reward_model=reward)


def guided_class(base: Any) -> Any:
    """Return the subclass of a diffusers pipeline class, and of ``NRGFlowPipeline``, that has a reward component.

    It keeps the name of ``base``, which diffusers writes to ``model_index.json``, so that the folder loads without
    this package.

    Raises:
        ValueError: If ``base`` is not supported.
    """
    if issubclass(base, NRGFlowPipeline):
        return base
    family_of(base)
    return guided_subclass(NRGFlowPipeline, base)


def _init_with_reward(base: Any) -> Any:
    """Return an ``__init__`` with the signature and type hints from which diffusers learns a pipeline's components."""

    def __init__(self: Any, *args: Any, reward_model: Any = None, **kwargs: Any) -> None:  # noqa: N807
        base.__init__(self, *args, **kwargs)
        self.register_modules(reward_model=reward_model)

    hint = torch.nn.Module | None
    reward = inspect.Parameter("reward_model", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)
    __init__.__signature__ = _extended(base.__init__, [reward])  # type: ignore[attr-defined]
    __init__.__annotations__ = {**get_type_hints(base.__init__), "reward_model": hint}
    return __init__


def _call_with_reward(base: Any) -> Any:
    """Return ``NRGFlowPipeline.__call__`` with the signature of the pipeline's own plus ours."""

    @functools.wraps(base.__call__)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        return NRGFlowPipeline.__call__(self, *args, **kwargs)

    ours = inspect.signature(NRGFlowPipeline.__call__).parameters.values()
    added = [parameter for parameter in ours if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    __call__.__signature__ = _extended(base.__call__, added)  # type: ignore[attr-defined]
    return __call__


def _extended(function: Any, added: list[inspect.Parameter]) -> inspect.Signature:
    signature = inspect.signature(function)
    return signature.replace(parameters=[*signature.parameters.values(), *added])


def _combined(guidance: RewardGuidance | None, weights: WeightsLike, scale: float | None) -> RewardGuidance:
    given: dict[str, Any] = {"weights": weights, "scale": scale}
    return replace(guidance or RewardGuidance(), **{name: value for name, value in given.items() if value is not None})


def _require_no_wish(*wishes: object) -> None:
    """Let a pipeline without a reward sample plainly, as its other optional parts, where nobody asks for guidance.

    Raises:
        ValueError: If somebody does.

    Warns:
        UserWarning: That nothing is guided.
    """
    advice = "load one with `from_pretrained(..., reward_model=...)`, or pass `reward_scale=0` to sample without it."
    if any(wish is not None for wish in wishes):
        raise ValueError(f"Expected a pipeline with a reward, but `reward_model` is None; {advice}")
    warnings.warn(f"This pipeline has no reward, so that nothing is guided; {advice}", stacklevel=4)


def _freeze(reward: Any) -> None:
    if isinstance(reward, torch.nn.Module):
        reward.eval().requires_grad_(False)


def _register_library() -> None:
    """Let diffusers load ``LatentReward`` from a ``model_index.json`` on the Hub, unlike other unknown libraries."""
    from diffusers.pipelines import pipeline_loading_utils as loading

    methods = {"LatentReward": ["save_pretrained", "from_pretrained"]}
    for name, entry in (("LOADABLE_CLASSES", {"nrg_sampler": methods}), ("ALL_IMPORTABLE_CLASSES", methods)):
        getattr(loading, name, {}).update(entry)


_register_library()
