"""Train a reward on labelled pairs or by distilling a teacher: a run that yields its progress.

Example:
    >>> from nrg_sampler.training.run import train_reward
    >>> from nrg_sampler.training.settings import LabelledPairs, RewardTraining
    >>> run = train_reward(RewardTraining(LabelledPairs(Path("pairs.csv")), out=Path("my-reward")))
    >>> for progress in run:
    ...     print(progress.work, progress.done, dict(progress.numbers))
    >>> run.result.folder
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nrg_sampler.files import writable_folder
from nrg_sampler.json_text import finite_only
from nrg_sampler.locks import FolderLock
from nrg_sampler.rewards.latent import LatentReward
from nrg_sampler.rewards.latent_space import latent_space
from nrg_sampler.runs.progress import Progress, Run
from nrg_sampler.training.csv_table import BadRow
from nrg_sampler.training.decoding import ClipSettings
from nrg_sampler.training.distil import prepare_distillation
from nrg_sampler.training.encoding import PairEncoder
from nrg_sampler.training.grade import held_out_accuracy
from nrg_sampler.training.objective import Objective
from nrg_sampler.training.pairs import PairData
from nrg_sampler.training.precision import CHECKPOINTS, Precision, choose_precision
from nrg_sampler.training.prepare import TrainingData, load_encoder, open_cache, prepare_training
from nrg_sampler.training.scoring import calibrate
from nrg_sampler.training.settings import LabelledPairs, RewardTraining
from nrg_sampler.training.step_log import StepLog
from nrg_sampler.training.trainer import train

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers.models.modeling_utils import ModelMixin

REWARD, CACHE, LOG = "reward", "cache", "training.jsonl"  # in the output folder


@dataclass(frozen=True)
class TrainedReward:
    """What a training brought.

    Args:
        folder: Where the reward is saved.
        axes: Names of its axes.
        pairs: How many it was trained on.
        held_out: How many it was tested on.
        bad: Rows and files that were left out.
        loss: Of the last step; ``None`` if the training had ended before.
        accuracy: Share of the held-out pairs ranked right, by noise level and axis; ``None`` without held-out pairs.
    """

    folder: Path
    axes: tuple[str, ...]
    pairs: int
    held_out: int
    bad: list[BadRow]
    loss: float | None
    accuracy: dict[str, dict[str, dict[str, float]]] | None


def train_reward(settings: RewardTraining) -> Run[TrainedReward]:
    """Train a reward and save it, from the last checkpoint if there is one.

    Under ``accelerate launch`` every process runs it; the first one writes.

    Args:
        settings: The data, the objective and the output folder.

    Returns:
        A run that yields ``Progress`` of preparing the data and of each training step.

    Raises:
        ValueError: If the output folder cannot be written; while it runs, if the data cannot be used or does not fit,
            the folder's checkpoints are of another run, or another run is at work there.
        RunFailedError: While it runs, if the loss is not finite.
        OSError: While it runs, if the disk is full.
        ImportError: If TensorBoard is to be used and is not installed.
    """
    writable_folder(settings.out)
    accelerator = _accelerator(settings)
    precision = choose_precision(settings, accelerator.device.type)
    settings = replace(
        settings,
        encoding=replace(settings.encoding, dtype=precision.dtype),
        mixed_precision=precision.mixed_precision,
    )
    return Run(_train_alone(settings, precision, accelerator), accelerator.is_main_process)


def _train_alone(
    settings: RewardTraining, precision: Precision, accelerator: Accelerator
) -> Generator[Progress, None, TrainedReward]:
    """Train while no other run may write to the folder; of one run's processes the first holds it."""
    with FolderLock(settings.out) if accelerator.is_main_process else nullcontext():
        return (yield from _train(settings, precision, accelerator))


def _train(
    settings: RewardTraining, precision: Precision, accelerator: Accelerator
) -> Generator[Progress, None, TrainedReward]:
    yield Progress("loading", 0, unit="model", notes=precision.notes)
    objective = settings.chosen_objective
    encoder = load_encoder(settings.encoding, accelerator.device)
    with accelerator.main_process_first():
        data = yield from _prepare(settings, encoder, accelerator.device)
    yield data.progress()
    training, samples = data.training, data.samples
    if training is None or samples is None:
        raise ValueError(
            f"Expected clips to train on, but `hold_out` {settings.hold_out:g} leaves none; hold out less."
        )
    reward = _new_reward(settings, objective, encoder, training.axes)
    clips = encoder.settings
    del encoder  # its pipeline needs memory
    # Without axes that see the prompt, the layers that read it take no part, and processes must not wait for them.
    accelerator.ddp_handler.find_unused_parameters = not reward.config.text_axes
    reward.to(accelerator.device)
    loss = yield from _optimise(reward, training, objective, settings, precision, accelerator)
    accuracy = None
    if accelerator.is_main_process:
        calibrate(reward, samples, accelerator.device, settings.trainer.seed)
        accuracy = None if data.held_out is None else held_out_accuracy(reward, data.held_out, accelerator.device)
        about = _about(settings, objective, data, len(training), accuracy, clips)
        reward.register_to_config(about=finite_only(about))
        _save(reward.to("cpu"), settings.out / REWARD)
    accelerator.end_training()
    held_out = 0 if data.held_out is None else len(data.held_out)
    return TrainedReward(settings.out / REWARD, training.axes, len(training), held_out, data.bad, loss, accuracy)


def _accelerator(settings: RewardTraining) -> Accelerator:
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, is_tensorboard_available

    if settings.tensorboard and not is_tensorboard_available():
        raise ImportError("A log for TensorBoard needs TensorBoard; install it with pip install tensorboard.")
    accelerator = Accelerator(
        cpu=settings.cpu,
        mixed_precision="no",  # see `trainer.train`
        gradient_accumulation_steps=settings.accumulate,
        log_with="tensorboard" if settings.tensorboard else None,
        project_dir=settings.out / "tensorboard" if settings.tensorboard else None,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    if settings.tensorboard:
        accelerator.init_trackers("reward")
    return accelerator


def _prepare(
    settings: RewardTraining, encoder: PairEncoder, device: torch.device
) -> Generator[Progress, None, TrainingData]:
    data, encoding = settings.data, settings.encoding
    if isinstance(data, LabelledPairs):
        cache = open_cache(encoding, encoder, settings.out / CACHE, sampled=False)
        return (yield from prepare_training(data, encoder, cache, settings.hold_out))
    cache = open_cache(encoding, encoder, settings.out / CACHE, sampled=True)
    return (yield from prepare_distillation(data, encoding.model, encoder, cache, settings.hold_out, device))


def _new_reward(
    settings: RewardTraining, objective: Objective, encoder: PairEncoder, axes: tuple[str, ...]
) -> LatentReward:
    """Start a reward from the pipeline's transformer."""
    torch.manual_seed(settings.trainer.seed)  # queries, reads and heads begin with the same random numbers everywhere
    reward: LatentReward = LatentReward.from_transformer(
        encoder.transformer,
        **objective.reward_options(),
        axes=axes,
        text_axes=settings.axes_with_text(axes),
        latent_space=latent_space(encoder.pipe.vae),
        **settings.recommended.reward_options(axes),
    ).float()
    return reward


def _optimise(
    reward: LatentReward,
    data: PairData,
    objective: Objective,
    settings: RewardTraining,
    precision: Precision,
    accelerator: Accelerator,
) -> Generator[Progress, None, float | None]:
    """Train with a log; returns the loss of the last step, ``None`` if all steps were done before."""
    loss, total, folder = None, settings.trainer.steps, settings.out / CHECKPOINTS
    bfloat16 = settings.mixed_precision == "bf16"
    log = StepLog(settings.out / LOG)
    steps = train(reward, data, objective, settings.trainer, folder, accelerator, bfloat16)
    if accelerator.is_main_process:  # not before the checkpoints are known to be of this run
        precision.save(settings.out)
    for numbers in steps:
        accelerator.log(numbers, step=int(numbers["step"]))
        if accelerator.is_main_process:
            log.write(numbers)
        loss = numbers["loss"]
        yield Progress("training", int(numbers["step"]), total, numbers=numbers)
    if loss is None:
        note = f"already trained for {total} steps, nothing to do; the model card is written again"
        yield Progress("trained", total, total, notes=(note,))
    return loss


def _save(reward: ModelMixin, folder: Path) -> None:
    """Write the reward whole: a disk that is full leaves what was there before."""
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        reward.save_pretrained(partial)
        folder.mkdir(exist_ok=True)
        for file in sorted(partial.iterdir()):
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _about(
    settings: RewardTraining,
    objective: Objective,
    data: TrainingData,
    pairs: int,
    accuracy: Mapping[str, Any] | None,
    clips: ClipSettings,
) -> dict[str, Any]:
    """Return what the model card and later evaluations need to know."""
    model, trainer = settings.encoding.model, settings.trainer
    return {
        "base_model": Path(model).resolve().name if Path(model).exists() else model,
        "data": f"{settings.description or data.description}, {pairs} pairs",
        "license": settings.license,
        "training_pairs": pairs,
        "training": {**objective.identity(), "steps": trainer.steps, "batch": trainer.batch, "lr": trainer.lr},
        "clips": vars(clips),
        "accuracy": accuracy,
    }
