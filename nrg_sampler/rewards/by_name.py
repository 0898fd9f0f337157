"""What guides a pipeline, from a name or several.

A latent reward is loaded as it was saved. A published judge of frames becomes a
:class:`~nrg_sampler.rewards.pixel.PixelReward` on the pipeline's own VAE, and several become one whose frames are
decoded once.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
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
from nrg_sampler.rewards.own import OwnJudge, file_of, is_own, load_own, reads_latents
from nrg_sampler.rewards.pixel import PixelReward

RewardLike: TypeAlias = Reward | str | os.PathLike[str] | Mapping[str, float] | Sequence[str] | None
NAMES = (str, os.PathLike, Mapping, list, tuple)
ONLY_JUDGES = {
    "oracle": "",
    "pixel": "; a pixel judge is made a reward by `PixelReward(judge, pipe.vae, axes)`",
    "vlm": "; a model behind a URL has no gradient, but can choose among samples, or guide by `lookahead`",
}


def reward_for(pipe: Any, wanted: RewardLike, *, offload: bool = False) -> Any:
    """Return the reward that is meant, as it is given if it is one already.

    Args:
        pipe: The pipeline that it is to guide.
        wanted: A reward; a name of ``nrg-sampler rewards``; ``NAME:FOLDER``; a folder or Hub id of a reward; the file
            that ``nrg-sampler calibrate`` wrote of one; a judge of frames or a reward of your own as
            ``module:FILE.py:NAME``, see :mod:`nrg_sampler.rewards.own`; or several judges of frames, as a list, or
            with their weights within an axis, as ``{"aesthetic": 1, "clipscore": 2}`` or
            ``"aesthetic=1,clipscore=2"``. An axis that one reward has is that reward whatever its weight.
        offload: Whether judges of frames are loaded to the memory of the processor, for guidance with
            ``offload=True``.

    Raises:
        ValueError: If a name is unknown or cannot guide, files are absent or damaged, weights are not positive and
            finite, or the pipeline has no VAE.
    """
    if not isinstance(wanted, NAMES):
        return wanted
    if is_calibration(wanted):
        return _calibrated(pipe, os.fspath(wanted), offload)  # type: ignore[arg-type]
    weights = names_and_weights(wanted)
    own = {name: load_own(name, "reward") for name in weights if is_own(name)}
    entries = {name: named_entry(name) for name in weights if name not in own}
    latents = [name for name, entry in entries.items() if entry is None]
    latents += [name for name, found in own.items() if reads_latents(found)]
    if latents:
        latent = latents[0]
        if len(weights) > 1:
            raise ValueError(
                f"Expected published rewards by name, but {latent!r} is a latent reward; load it with `load_reward` "
                "and combine rewards of the same axes in an `EnsembleReward`."
            )
        if latent_entry(latent) is not None:
            return _latent_prm(pipe, latent)
        from nrg_sampler.rewards.loading import load_reward  # brings diffusers in

        return own[latent] if latent in own else load_reward(latent)
    if not isinstance(getattr(pipe, "vae", None), torch.nn.Module):
        raise ValueError(
            f"Expected a pipeline with a VAE for {' and '.join(weights)}, which see pixels, but {type(pipe).__name__} "
            "has none; load the pipeline with its VAE, or pass a latent reward."
        )
    device = getattr(pipe, "_execution_device", None) or pipe.vae.device
    resting = "cpu" if offload else device
    judges: dict[str, Any] = dict.fromkeys(weights)  # in this order, which is that of the axes
    judges |= {name: OwnJudge(found).to(resting) for name, found in own.items()}
    judges |= {
        name: load_named(name, device=resting, dtype=precision(entry, device))
        for name, entry in entries.items()
        if entry is not None
    }
    judge: Any = JointJudge(judges, weights) if len(judges) > 1 else next(iter(judges.values()))
    frames = {ALL if name in own else entries[name].frames for name in weights}  # type: ignore[union-attr]
    reward = PixelReward(
        judge,
        pipe.vae,
        judge.axes,
        mean=judge.mean,
        std=judge.std,
        recommended_scale=getattr(judge, "recommended_scale", 1.0),
        recommended_frames=frames.pop() if len(frames) == 1 else ALL,
    )
    reward.source = _text(weights)
    return reward.eval()


def _calibrated(pipe: Any, file: str, offload: bool) -> Any:
    """Return the reward that a file names, with what was measured of it."""
    calibration = Calibration.read(file)
    reward = calibration.applied(reward_for(pipe, calibration.reward, offload=offload))
    if isinstance(reward, PixelReward):
        reward.source, reward.recommended_frames = file, calibration.frames
    return reward


def reward_on(vae: Any, wanted: RewardLike) -> Any:
    """Return the reward that is meant where there is no pipeline; otherwise as :func:`reward_for`.

    Args:
        vae: The pipeline's VAE, for judges of frames; ``None`` will do for a reward of latents.
        wanted: As there.

    Raises:
        ValueError: As there.
    """
    if vae is None and isinstance(wanted, NAMES) and (seeing := list(filter(sees_frames, names_and_weights(wanted)))):
        raise ValueError(
            f"Expected the pipeline's VAE for {' and '.join(seeing)}, which see pixels, but got none; pass "
            "`vae=pipe.vae`."
        )
    return reward_for(SimpleNamespace(vae=vae), wanted)


def names_and_weights(wanted: str | os.PathLike[str] | Mapping[str, float] | Sequence[str]) -> dict[str, float]:
    """Read one name, several as ``"aesthetic=1,clipscore=2"``, a list or a mapping.

    Raises:
        ValueError: If there is none, one comes twice, or a weight is not a positive finite number.
    """
    if is_calibration(wanted):
        return names_and_weights(Calibration.read(wanted).reward)  # type: ignore[arg-type]
    pairs: list[tuple[str, Any]]
    if isinstance(wanted, Mapping):
        pairs = [(str(name), weight) for name, weight in wanted.items()]
    elif not isinstance(wanted, (str, os.PathLike)):
        pairs = [(os.fspath(name), 1.0) for name in wanted]
    elif any(sign in (text := os.fspath(wanted)) for sign in "=,") and not _is_place(text):
        parts = [part.rpartition("=") if "=" in part else (part, "=", "1") for part in text.split(",")]
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


def sees_frames(name: str) -> bool:
    """Whether a name means a judge of frames, which guides through the VAE, and not a reward of latents.

    Raises:
        ValueError: If it means neither, or what only judges.
    """
    return not reads_latents(load_own(name, "reward")) if is_own(name) else named_entry(name) is not None


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
    if not rest or not Path(rest).is_dir():
        raise ValueError(f"Expected a folder in {name!r}, but {rest!r} is none; write {kind}:FOLDER.")
    return Path(rest)


def local_fingerprint(name: str) -> str | None:
    """Fingerprint the files of a published reward or one's own; ``None`` if it is neither or they are not here."""
    if is_own(name):
        return fingerprint(file_of(name))
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


def _is_place(text: str) -> bool:
    """Whether a text is one name with a folder or file, in whose path there may be anything."""
    places = (text, text.partition(":")[2], text.partition(":")[2].rpartition(":")[0])
    return any(bool(place) and Path(place).exists() for place in places)


def local_fingerprints(names: str) -> dict[str, str | None]:
    """Fingerprint each judge of frames of a text, as ``"reward"`` if it is one and ``"reward NAME"`` if several.

    A calibration is fingerprinted as such, besides.
    """
    measured = {"calibration": fingerprint(Path(names))} if is_calibration(names) else {}
    weights = names_and_weights(names)
    return measured | {
        f"reward {_short(name)}" if len(weights) > 1 else "reward": local_fingerprint(name) for name in weights
    }


def require_known(wanted: RewardLike) -> None:
    """Refuse names that cannot guide, before anything is loaded.

    Raises:
        ValueError: As :func:`reward_for` does.
    """
    if isinstance(wanted, NAMES):
        for name in names_and_weights(wanted):
            sees_frames(name)


def _short(name: str) -> str:
    entry = None if is_own(name) else named_entry(name)
    return name.rpartition(":")[2] if entry is None else entry.name


def _text(weights: Mapping[str, float]) -> str:
    """Return what :func:`names_and_weights` reads."""
    if len(weights) == 1:
        return next(iter(weights))
    return ",".join(f"{name}={weight!r}" for name, weight in weights.items())
