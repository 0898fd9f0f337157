"""Training, distillation and evaluation from Python: settings in, progress on the way, a result at the end."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nrg_sampler import LatentReward
from nrg_sampler.runs import device
from nrg_sampler.runs.progress import RunFailedError
from nrg_sampler.training import trainer as trainer_module
from nrg_sampler.training.evaluate import evaluate_rewards
from nrg_sampler.training.objective import Objective
from nrg_sampler.training.precision import choose_precision
from nrg_sampler.training.run import train_reward
from nrg_sampler.training.settings import (
    EncodingSettings,
    LabelledPairs,
    Recommendation,
    RewardEvaluation,
    RewardTraining,
    TeacherClips,
    objective_for,
)
from nrg_sampler.training.trainer import TrainerSettings
from nrg_sampler.video import write_mp4

PROMPTS = ("a red circle", "a blue square", "a red square moving left", "a blue circle moving right")
SHORT = TrainerSettings(steps=4, batch=4, lr=1e-2, warmup=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, components):
    """A tiny pipeline, ten clips and a preference file with one bad row."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    folder = tmp_path_factory.mktemp("run")
    WanPipeline(**components, scheduler=FlowMatchEulerDiscreteScheduler()).save_pretrained(folder / "tiny")
    made_for = {"height": 16, "width": 16, "num_frames": 3, "fps": 8, "max_sequence_length": 8}
    (folder / "tiny" / "sampling.json").write_text(json.dumps({**made_for, "num_inference_steps": 2}))
    rng = np.random.default_rng(0)
    for index in range(10):
        write_mp4(rng.integers(0, 255, (4, 16, 24, 3), dtype=np.uint8), folder / f"{index}.mp4", 8)
    lines = ["path_A,path_B,prompt,VQ,TA"]
    for index in range(20):
        labels = f"{('A', 'B', 'same')[index % 3]},{('B', 'A')[index % 2]}"
        lines.append(f"{index % 10}.mp4,{(index * 3 + 1) % 10}.mp4,{PROMPTS[index // 5]},{labels}")
    (folder / "pairs.csv").write_text("\n".join([*lines, "0.mp4,gone.mp4,a red circle,A,A"]) + "\n")
    return folder


def encoding(folder):
    return EncodingSettings(model=str(folder / "tiny"), dtype="float32", cache=folder / "cache")


def training(folder, out, data, **options):
    options = {
        "trainer": SHORT,
        "objective": objective_for(data, {"num_blocks": 1}),
        "cpu": True,
        "mixed_precision": "no",
        **options,
    }
    return RewardTraining(data, folder / out, encoding(folder), **options)


def brightness(clips, prompts, fps):
    return clips.mean(dim=(1, 2, 3, 4))[:, None]


brightness.axes = ("light",)


def test_a_reward_from_labels_in_ten_lines(folder):
    settings = training(folder, "labels", LabelledPairs(folder / "pairs.csv"), hold_out=0.3)
    run = train_reward(settings)
    seen = list(run)
    result = run.result
    assert list(dict.fromkeys(progress.work for progress in seen)) == [
        "loading",
        "reading",
        "checking",
        "encoding",
        "prepared",
        "training",
    ]
    steps = [progress for progress in seen if progress.work == "training"]
    assert [(step.done, step.total) for step in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert result.loss == steps[-1].numbers["loss"]
    read, left_out = [note for progress in seen for note in progress.notes]
    assert read == "pairs.csv: axes VQ, TA; 21 rows, 1 left out"
    assert left_out == "left out: row 22: names gone.mp4, which does not exist"
    assert result.axes == ("VQ", "TA")
    assert (result.pairs, result.held_out, len(result.bad)) == (20 - result.held_out, result.held_out, 1)
    assert set(result.accuracy["0.0-0.2"]) == {"VQ", "TA"}
    assert LatentReward.from_pretrained(result.folder).config.about["base_model"] == "tiny"

    evaluation = RewardEvaluation(
        (result.folder,), LabelledPairs(folder / "pairs.csv"), folder / "accuracy", encoding(folder), cpu=True
    )
    graded = evaluate_rewards(evaluation).finish()
    assert graded.pairs == 20
    assert 0 <= graded.rewards[0]["axes"]["VQ"]["without_ties"] <= 1
    assert json.loads((folder / "accuracy" / "accuracy.json").read_text()) == graded.to_dict()


def test_a_reward_from_a_teacher_that_is_a_function(folder):
    clips = TeacherClips(
        brightness,
        prompts=PROMPTS,
        num_clips=12,
        clips_per_prompt=3,
        other_prompts=1,
        batch=6,
        identity="brightness 1",
    )
    settings = training(folder, "teacher", clips, hold_out=0.0, recommended=Recommendation(scale="light=40"))
    result = train_reward(settings).finish()
    assert result.axes == ("light",)
    assert (result.held_out, result.accuracy) == (0, None)
    assert train_reward(settings).finish().loss is None  # the same run again
    with pytest.raises(ValueError, match="these differ: .*the pairs, the labels"):
        train_reward(replace(settings, data=replace(clips, identity="brightness 2", seed=1))).finish()
    reward = LatentReward.from_pretrained(result.folder)
    assert reward.recommended_scale == (40.0,)
    about = reward.config.about
    assert about["training"]["loss"] == "regression"
    assert about["data"].startswith("12 clips, sampled for 4 prompts, scored by brightness 1 under their prompts")


def test_a_finished_training_is_not_done_again(folder):
    settings = training(folder, "again", LabelledPairs(folder / "pairs.csv"))
    first = train_reward(settings).finish()
    run = train_reward(settings)
    seen = list(run)
    assert "training" not in {progress.work for progress in seen}
    assert "already trained for 4 steps, nothing to do" in " ".join(seen[-1].notes)
    assert run.result.loss is None
    assert run.result.accuracy == first.accuracy


def test_corrected_labels_and_other_clips_are_not_taken_for_the_same_run(folder):
    text = (folder / "pairs.csv").read_text()
    (folder / "corrected.csv").write_text(text)
    settings = training(folder, "corrected", LabelledPairs(folder / "corrected.csv"))
    train_reward(settings).finish()
    files = {file: file.read_bytes() for file in sorted((folder / "corrected").rglob("*.*"))}
    flipped = text.replace(",A,", ",-,").replace(",B,", ",A,").replace(",-,", ",B,")
    (folder / "corrected.csv").write_text(flipped)
    with pytest.raises(ValueError, match="these differ: the labels; repeat what they were, or name another folder"):
        train_reward(settings).finish()
    (folder / "corrected.csv").write_text(text)
    with pytest.raises(ValueError, match=r"these differ: num_frames 3 \(now 1\)"):
        train_reward(replace(settings, encoding=replace(settings.encoding, num_frames=1))).finish()
    with pytest.raises(ValueError, match=r"axes that see the prompt TA \(now VQ\)"):
        train_reward(replace(settings, text_axes=("VQ",))).finish()
    with pytest.raises(ValueError, match=r"mixed precision no \(now bf16\)"):
        train_reward(replace(settings, mixed_precision="bf16")).finish()
    assert {file: file.read_bytes() for file in files} == files  # nothing was written over


def test_a_run_that_goes_on_logs_each_step_once(folder):
    trainer = TrainerSettings(steps=4, batch=4, lr=1e-2, warmup=0, save_every=3)
    settings = training(folder, "logged", LabelledPairs(folder / "pairs.csv"), trainer=trainer)
    run = train_reward(settings)
    for progress in run:
        if progress.work == "training" and progress.done == 2:
            break
    run.close()
    log = folder / "logged" / "training.jsonl"
    log.write_text(log.read_text() + '{"step": 3, "lo')  # cut off
    train_reward(settings).finish()
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3, 4]


def test_a_second_training_into_one_folder_is_refused(folder):
    settings = training(folder, "twice", LabelledPairs(folder / "pairs.csv"))
    first = train_reward(settings)
    next(first)
    second = RewardEvaluation((folder,), settings.data, folder / "twice", encoding(folder), cpu=True)
    for run in (train_reward(settings), evaluate_rewards(second)):
        with pytest.raises(ValueError, match=r"no other run is writing to, but one is at work in .*/twice; wait"):
            run.finish()
    first.close()
    next(train_reward(settings))


def test_a_loss_that_is_not_finite_leaves_the_reward_that_was_there(folder, monkeypatch):
    settings = training(folder, "diverged", LabelledPairs(folder / "pairs.csv"))
    train_reward(settings).finish()
    before = (folder / "diverged" / "reward" / "config.json").read_bytes()
    shutil.rmtree(folder / "diverged" / "checkpoints")
    step = trainer_module._step
    monkeypatch.setattr(trainer_module, "_step", lambda *them: {**step(*them), "loss": float("inf")})
    with pytest.raises(RunFailedError, match="at step 1 the loss is inf; no reward was written"):
        train_reward(settings).finish()
    assert (folder / "diverged" / "reward" / "config.json").read_bytes() == before


def test_the_launcher_decides_the_precision_unless_an_option_does(folder, native, monkeypatch):
    native(False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    chosen = choose_precision(automatic(folder, "launched"), "cpu")
    assert (chosen.dtype, chosen.mixed_precision) == ("float32", "bf16")
    assert chosen.note.endswith("; training as accelerate launch has it, which --mixed-precision overrides.")
    option = choose_precision(automatic(folder, "launched", mixed_precision="no"), "cpu")
    assert option.mixed_precision == "no"
    native(True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert choose_precision(automatic(folder, "launched"), "cpu").mixed_precision == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert choose_precision(automatic(folder, "launched", mixed_precision="bf16"), "cpu").mixed_precision == "bf16"
    with pytest.raises(
        ValueError, match=r"Expected `accelerate launch --mixed_precision` to be bf16 or no, but got fp16"
    ):
        choose_precision(automatic(folder, "launched"), "cpu")


def test_a_run_that_is_stopped_goes_on_where_it_was(folder):
    trainer = TrainerSettings(steps=4, batch=4, lr=1e-2, warmup=0, save_every=1)
    pairs = LabelledPairs(folder / "pairs.csv")
    whole = train_reward(training(folder, "whole", pairs, trainer=trainer)).finish()
    settings = training(folder, "stopped", pairs, trainer=trainer)
    run = train_reward(settings)
    for progress in run:
        if progress.work == "training" and progress.done == 3:
            break
    run.close()
    rest = train_reward(settings)
    done = [progress.done for progress in rest if progress.work == "training"]
    assert done == [4]  # a step is saved before it is yielded
    assert rest.result.loss == whole.loss


@pytest.fixture
def native(monkeypatch):
    """Set whether the processor multiplies bfloat16 natively."""

    def set_native(value):
        dtype = torch.bfloat16 if value else torch.float32
        monkeypatch.setattr(device, "fast_dtype", lambda _: dtype)

    return set_native


def automatic(folder, out, **options):
    encoding = EncodingSettings(model=str(folder / "tiny"), cache=folder / "cache")
    data = LabelledPairs(folder / "pairs.csv")
    options = {"trainer": SHORT, "objective": objective_for(data, {"num_blocks": 1}), "cpu": True, **options}
    return RewardTraining(data, folder / out, encoding, **options)


@pytest.mark.parametrize(
    ("is_native", "dtype", "training"), [(True, "bfloat16", "bfloat16 autocast"), (False, "float32", "float32")]
)
def test_the_precision_is_what_is_fast_and_says_so(folder, native, is_native, dtype, training):
    native(is_native)
    run = train_reward(automatic(folder, f"auto-{dtype}"))
    notes = [note for progress in run for note in progress.notes]
    assert notes[0].startswith(
        f"clips are encoded in {dtype}, training is in {training}: dtype auto is {dtype} on cpu"
    )
    encoding = EncodingSettings(str(folder / "tiny"), dtype=dtype, cache=folder / "cache")
    explicit = automatic(folder, f"explicit-{dtype}", mixed_precision="bf16" if is_native else "no")
    other = train_reward(replace(explicit, encoding=encoding))
    assert not any("encoded" in note for progress in other for note in progress.notes)
    assert other.result.loss == run.result.loss


def test_a_continued_run_keeps_its_precision(folder, native):
    trainer = TrainerSettings(steps=4, batch=4, lr=1e-2, warmup=0, save_every=1)
    settings = automatic(folder, "kept", trainer=trainer)
    native(False)
    whole = train_reward(automatic(folder, "kept-whole", trainer=trainer)).finish()
    run = train_reward(settings)
    for progress in run:
        if progress.work == "training" and progress.done == 2:
            break
    run.close()
    native(True)
    rest = train_reward(settings)
    note = next(rest).notes[0]
    assert note == "clips are encoded in float32, training is in float32: as before in this run."
    assert rest.finish().loss == whole.loss
    for damaged in ("[]", "{", '{"dtype": "int3", "mixed_precision": "no"}'):
        (folder / "kept" / "precision.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"of the run in .*precision\.json, but it is damaged; write them as"):
            choose_precision(settings, "cpu")
    (folder / "kept" / "precision.json").unlink()  # a run from before there was a choice
    assert choose_precision(settings, "cpu").dtype == "float32"
    assert choose_precision(replace(settings, mixed_precision="bf16"), "cpu").mixed_precision == "bf16"
    assert choose_precision(replace(settings, out=folder / "new"), "cpu").dtype == "bfloat16"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: EncodingSettings(dtype="int8"), "Expected `dtype` to be one of .*float32.* but got 'int8'"),
        (lambda: EncodingSettings(height=0), "Expected `height` to be above 0, but got 0"),
        (
            lambda: LabelledPairs(Path("p.csv"), fraction=2.0),
            "Expected `fraction` to be a share from 0 to 1, but got 2",
        ),
        (lambda: TeacherClips("pixel"), "Expected clips for the teacher, but got none"),
        (lambda: TeacherClips("pixel", prompts="shapes", batch=0), "Expected `batch` to be at least 1, but got 0"),
        (
            lambda: TeacherClips(brightness, prompts="shapes"),
            "Expected `identity` beside a teacher that is a callable",
        ),
        (lambda: Recommendation(damping="much"), "Expected `recommended_damping` to be 0 or more"),
        (lambda: new_training(hold_out=-1), "Expected `hold_out` to be a share from 0 to 1, but got -1"),
        (lambda: new_training(accumulate=0), "Expected `accumulate` to be at least 1, but got 0"),
        (lambda: new_training(mixed_precision="fp8"), "Expected `mixed_precision` to be one of .*but got 'fp8'"),
        (lambda: RewardEvaluation((), LabelledPairs(Path("p.csv")), Path("out")), "Expected at least one reward"),
    ],
)
def test_settings_are_checked_when_they_are_made(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def new_training(**options):
    return RewardTraining(LabelledPairs(Path("p.csv")), Path("out"), **options)


def test_the_objective_follows_the_data():
    teacher = TeacherClips("pixel", prompts="shapes")
    assert objective_for(teacher) == Objective(loss="regression")
    assert objective_for(LabelledPairs(Path("p.csv"))) == Objective()
    assert objective_for(teacher, {"loss": "thurstone", "num_blocks": 1}) == Objective(loss="thurstone", num_blocks=1)


def test_recommendations_have_to_name_every_axis():
    assert Recommendation(scale=40, fading="VQ=4").reward_options(("VQ", "TA")) == {
        "recommended_scale": [40.0, 40.0],
        "recommended_fading": [4.0, 0.0],
    }
    with pytest.raises(ValueError, match="Expected `recommended_scale` above 0 for each axis, but got VQ=40"):
        Recommendation(scale="VQ=40").reward_options(("VQ", "TA"))
