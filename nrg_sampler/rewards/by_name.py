"""What guides a pipeline, from a name or several.

A latent reward is loaded as it was saved. A published judge of frames becomes a
:class:`~nrg_sampler.rewards.pixel.PixelReward` on the pipeline's own VAE, and several become one whose frames are
decoded once.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch

from nrg_sampler.checkpoints import BUNDLED
from nrg_sampler.entries import shown
from nrg_sampler.files import fingerprint
from nrg_sampler.rewards.base import Reward
from nrg_sampler.rewards.calibration import Calibration, is_calibration
from nrg_sampler.rewards.frames import ALL
from nrg_sampler.rewards.named import load_named
from nrg_sampler.rewards.named.files import Place, TorchCache
from nrg_sampler.rewards.named.joint import JointJudge
from nrg_sampler.rewards.named.latent_table import LATENT_TABLE, LatentEntry, find_latent
from nrg_sampler.rewards.named.loading import precision, recognised, resolve
from nrg_sampler.rewards.named.table import TABLE, Entry, find, unknown
from nrg_sampler.rewards.pixel import PixelReward

RewardLike: TypeAlias = Reward | str | os.PathLike[str] | Mapping[str, float] | None
ONLY_JUDGES = {
    "oracle": "",
    "pixel": "; a pixel judge is made a reward by `PixelReward(judge, pipe.vae, axes)`",
    "vlm": "; a model behind a URL has no gradient, but can choose among samples, or guide by `lookahead`",
}


def reward_for(pipe: Any, wanted: RewardLike, *, offload: bool = False) -> Any:
    """Return the reward that is meant, as it is given if it is one already.

    Args:
        pipe: The pipeline that it is to guide.
        wanted: A reward; a name of ``nrg-sampler rewards``; ``NAME:FOLDER``; a folder or Hub id of a reward; or
            the file that ``nrg-sampler calibrate`` wrote of one; or several of the
            named ones with their weights within an axis, as ``{"aesthetic": 1, "clipscore": 2}`` or
            ``"aesthetic=1,clipscore=2"``. An axis that one reward has is that reward whatever its weight.
        offload: Whether judges of frames are loaded to the memory of the processor, for guidance with
            ``offload=True``.

    Raises:
        ValueError: If a name is unknown or cannot guide, files are absent or damaged, weights are not positive and
            finite, or the pipeline has no VAE.
    """
    if not isinstance(wanted, (str, os.PathLike, Mapping)):
        return wanted
    if is_calibration(wanted):
        return _calibrated(pipe, os.fspath(wanted), offload)  # type: ignore[arg-type]
    weights = names_and_weights(wanted)
    entries = {name: named_entry(name) for name in weights}
    if None in entries.values():
        (latent, *_) = (name for name, entry in entries.items() if entry is None)
        if len(entries) > 1:
            raise ValueError(
                f"Expected published rewards by name, but {latent!r} is a latent reward; load it with `load_reward` "
                "and combine rewards of the same axes in an `EnsembleReward`."
            )
        if latent_entry(latent) is not None:
            return _latent_prm(pipe, latent)
        from nrg_sampler.rewards.loading import load_reward  # brings diffusers in

        return load_reward(latent)
    if not isinstance(getattr(pipe, "vae", None), torch.nn.Module):
        raise ValueError(
            f"Expected a pipeline with a VAE for {' and '.join(weights)}, which see pixels, but {type(pipe).__name__} "
            "has none; load the pipeline with its VAE, or pass a latent reward."
        )
    device = getattr(pipe, "_execution_device", None) or pipe.vae.device
    judges = {
        name: load_named(name, device="cpu" if offload else device, dtype=precision(entry, device))
        for name, entry in entries.items()
        if entry is not None
    }
    judge: Any = JointJudge(judges, weights) if len(judges) > 1 else next(iter(judges.values()))
    frames = {entry.frames for entry in entries.values() if entry is not None}
    recommended = frames.pop() if len(frames) == 1 else ALL
    reward = PixelReward(judge, pipe.vae, judge.axes, mean=judge.mean, std=judge.std, recommended_frames=recommended)
    reward.source = _text(weights)
    return reward.eval()


def _calibrated(pipe: Any, file: str, offload: bool) -> Any:
    """Return the reward that a file names, with what was measured of it."""
    calibration = Calibration.read(file)
    reward = calibration.applied(reward_for(pipe, calibration.reward, offload=offload))
    if isinstance(reward, PixelReward):
        reward.source, reward.recommended_frames = file, calibration.frames
    return reward


def names_and_weights(wanted: str | os.PathLike[str] | Mapping[str, float]) -> dict[str, float]:
    """Read one name, several as ``"aesthetic=1,clipscore=2"`` or a mapping.

    Raises:
        ValueError: If there is none, one comes twice, or a weight is not a positive finite number.
    """
    if is_calibration(wanted):
        return names_and_weights(Calibration.read(wanted).reward)  # type: ignore[arg-type]
    pairs: list[tuple[str, Any]]
    if isinstance(wanted, Mapping):
        pairs = [(str(name), weight) for name, weight in wanted.items()]
    elif "=" in (text := os.fspath(wanted)) and not (Path(text).exists() or _is_folder(text.partition(":")[2])):
        parts = [part.rpartition("=") for part in text.split(",")]
        pairs = [(name.strip(), weight.strip()) for name, _, weight in parts]
    else:
        return {text: 1.0}
    if not pairs:
        raise ValueError('Expected at least one reward, but got none; write {"aesthetic": 1, "clipscore": 2}.')
    weights: dict[str, float] = {}
    for name, weight in pairs:
        try:
            number = math.nan if isinstance(weight, bool) else float(weight)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number) or number <= 0:
            raise ValueError(
                f"Expected a weight above 0 for the reward {name!r}, a finite number, but got {shown(weight)}; leave "
                "out a reward that is not to count."
            )
        if name in weights:
            raise ValueError(f"Expected each reward once, but got {name!r} twice; add their weights.")
        weights[name] = number
    return weights


def named_entry(name: str) -> Entry | None:
    """Return the entry of the table that a name means; ``None`` if it means a latent reward.

    Raises:
        ValueError: If it means neither, or what only judges.
    """
    kind = name.partition(":")[0]
    if kind in ONLY_JUDGES and not Path(name).is_dir():
        raise ValueError(
            f"Expected a reward that can guide, but {name!r} only judges, with --judge{ONLY_JUDGES[kind]}; "
            "`nrg-sampler rewards` lists those that guide."
        )
    if name == BUNDLED or latent_entry(name) is not None:
        return None
    if Path(name).is_dir():
        return resolve(name)[0] if recognised(Path(name)) else None
    if find(kind) is not None or any(entry.on_hub and entry.source == name for entry in TABLE):
        return resolve(name)[0]
    if os.sep in name:  # a Hub id, or a folder that is not there
        return None
    raise unknown(name)


def latent_entry(name: str) -> LatentEntry | None:
    """Return the entry of the table of latent rewards that a name, its Hub id or ``NAME:FOLDER`` means."""
    if Path(name).is_dir():
        return None
    return find_latent(name.partition(":")[0]) or next((one for one in LATENT_TABLE if one.source == name), None)


def _latent_prm(pipe: Any, name: str) -> Any:
    from nrg_sampler.rewards.latent_prm import LatentPRM, require_host

    require_host(pipe)
    folder = _latent_folder(name)
    device = getattr(pipe, "_execution_device", None) or pipe.transformer.device
    computes = pipe.transformer.dtype  # of a quantised transformer it may be none to compute in
    dtype = computes if computes in (torch.float32, torch.float16, torch.float64) else torch.bfloat16
    reward = LatentPRM.from_pretrained(folder, dtype=dtype, device=device)
    reward.source = name
    return reward


def _latent_folder(name: str) -> Path:
    from nrg_sampler.rewards.latent_prm import published_folder

    kind, colon, rest = name.partition(":")
    if not colon:
        return published_folder()
    if not _is_folder(rest):
        raise ValueError(f"Expected a folder in {name!r}, but {rest!r} is none; write {kind}:FOLDER.")
    return Path(rest)


def local_fingerprint(name: str) -> str | None:
    """Fingerprint the files of a published reward; ``None`` if the name is not of one or they are not here."""
    entry = named_entry(name)
    if latent_entry(name) is not None:
        try:
            return fingerprint(_latent_folder(name))
        except ValueError:  # not here
            return None
    if entry is None:
        return None
    folder = resolve(name)[1]
    if folder is not None:
        return fingerprint(folder)
    place = Place(entry.source) if entry.on_hub else TorchCache()
    files = [file for file in map(place.file, entry.files) if file is not None]
    return fingerprint(files[0]) if files else None


def _is_folder(place: str) -> bool:
    return bool(place) and Path(place).is_dir()


def local_fingerprints(names: str) -> dict[str, str | None]:
    """Fingerprint each published reward of a text, as ``"reward"`` if it is one and ``"reward NAME"`` if several.

    A calibration is fingerprinted as such, besides.
    """
    own = {"calibration": fingerprint(Path(names))} if is_calibration(names) else {}
    entries = {name: named_entry(name) for name in names_and_weights(names)}
    return own | {
        f"reward {entry.name}" if entry is not None and len(entries) > 1 else "reward": local_fingerprint(name)
        for name, entry in entries.items()
    }


def require_known(wanted: RewardLike) -> None:
    """Refuse names that cannot guide, before anything is loaded.

    Raises:
        ValueError: As :func:`reward_for` does.
    """
    if isinstance(wanted, (str, os.PathLike, Mapping)):
        for name in names_and_weights(wanted):
            named_entry(name)


def _text(weights: Mapping[str, float]) -> str:
    """Return what :func:`names_and_weights` reads."""
    if len(weights) == 1:
        return next(iter(weights))
    return ",".join(f"{name}={weight!r}" for name, weight in weights.items())
