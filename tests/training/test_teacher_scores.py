"""A reward learned from a teacher instead of labels: which clips, which prompts, what is kept, what is learned."""

from __future__ import annotations

import json
import random
import shlex
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nrg_sampler import LatentReward, cli
from nrg_sampler.flow import noised
from nrg_sampler.training.cache import LatentCache
from nrg_sampler.training.losses import LOSSES, Comparison
from nrg_sampler.training.objective import Objective
from nrg_sampler.training.scoring import score_pairs
from nrg_sampler.training.sources import GeneratedClips, VideoFiles, plan_samples
from nrg_sampler.training.teacher_scores import PromptPool, ScoredClip, TeacherScores, assign_prompts, mean_and_std
from nrg_sampler.training.trainer import TrainerSettings, train
from nrg_sampler.video import write_mp4

PROMPTS = [
    f"{opening}a {color} {shape} moving {way}"
    for opening in ("", "right left ", "a a ")
    for color in ("red", "blue")
    for shape in ("circle", "square")
    for way in ("left", "right")
]
TEACHERS = '''
import torch

class Brightness(torch.nn.Module):
    """Frames alone."""

    axes = ("light",)

    def forward(self, clips):
        return clips.mean(dim=(1, 2, 3, 4))[:, None]

class Wanted:
    """Bright if it was to be red, dark if blue."""

    axes = ("VQ", "TA")

    def __call__(self, clips, prompts, fps):
        light = clips.mean(dim=(1, 2, 3, 4))
        sign = torch.tensor([1.0 if "red" in prompt else -1.0 for prompt in prompts])
        return torch.stack([light, sign * light], dim=1)

class Constant:
    axes = ("light",)

    def __call__(self, clips, prompts, fps):
        return torch.zeros(len(clips), 1)

class Broken(Constant):
    def __call__(self, clips, prompts, fps):
        return torch.full((len(clips), 1), float("nan"))

no_axes = abs
'''
SHORT = shlex.split("--blocks 1 --lr 1e-2 --trunk-lr 1e-3 --warmup 5 --ema 0.9 --mixed-precision no")
ENCODING = shlex.split("--dtype float32 --cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, components):
    """A tiny pipeline, prompts, teachers, and videos of one brightness each."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    folder = tmp_path_factory.mktemp("teacher")
    WanPipeline(**components, scheduler=FlowMatchEulerDiscreteScheduler()).save_pretrained(folder / "tiny")
    made_for = {"height": 16, "width": 16, "num_frames": 5, "fps": 8, "max_sequence_length": 8}
    (folder / "tiny" / "sampling.json").write_text(json.dumps({**made_for, "num_inference_steps": 4}))
    (folder / "prompts.txt").write_text("\n".join([*PROMPTS, "", PROMPTS[0]]))
    (folder / "teachers.py").write_text(TEACHERS)
    (folder / "videos").mkdir()
    rng = np.random.default_rng(0)
    for index in range(12):
        frame = rng.integers(0, 60, (6, 16, 16, 3)) + 15 * index
        write_mp4(frame.astype(np.uint8), folder / "videos" / f"{index:02}.mp4", 8)
        (folder / "videos" / f"{index:02}.txt").write_text(PROMPTS[index] + "\n")
    return folder


def command(name, folder, out, *more, teacher="Brightness", source=None):
    start = ["--prompts", str(folder / "prompts.txt")] if source is None else [str(source)]
    options = ["--teacher", f"module:{folder / 'teachers.py'}:{teacher}", "--model", str(folder / "tiny")]
    options += ["--out", str(folder / out), "--cache", str(folder / "cache"), "--clip-batch", "16"]
    return cli.main([name, *start, *options, *ENCODING, *(SHORT if name == "train-reward" else []), *more])


def test_more_samples_begin_with_those_of_fewer_at_the_same_settings():
    many, few = (plan_samples(["a", "b"], count, 3, (10, 25), (1, 4.0)) for count in (20, 7))
    assert many[:7] == few
    assert [sample.prompt for sample in few] == ["a", "a", "a", "b", "b", "b", "a"]
    assert len({sample.name for sample in many}) == 20
    assert {(sample.steps, sample.guidance_scale) for sample in many} == {(10, 1.0), (10, 4.0), (25, 1.0), (25, 4.0)}
    with pytest.raises(ValueError, match="Expected at least one prompt, step count and guidance scale"):
        plan_samples([], 1, 1, (1,), (1,))


def test_only_samples_with_the_same_settings_are_made_together():
    samples = plan_samples(["a"], 30, 1, (10, 25), (1, 4.0))
    batches = GeneratedClips(None, samples, None, batch=4).batches()
    assert sorted(index for batch in batches for index in batch) == list(range(30))
    assert max(map(len, batches)) == 4
    for batch in batches:
        assert len({(samples[index].steps, samples[index].guidance_scale) for index in batch}) == 1


def test_half_of_the_other_prompts_are_much_like_the_own_one():
    near = [f"a red circle moving {word}" for word in ("left", "up", "down")]
    far = [f"two green {animal} sleep in tree {number}" for animal in ("cats", "owls") for number in range(40)]
    pool, own = PromptPool([*near, *far]), "a red circle moving right"
    drawn = [pool.draw(own, 4, random.Random(seed)) for seed in range(20)]
    assert all(len(set(prompts)) == 4 and own not in prompts for prompts in drawn)
    assert sum(prompt in near for prompts in drawn for prompt in prompts[:2]) > 2
    assert {prompt for prompts in drawn for prompt in prompts[2:]} & set(far)
    assert PromptPool(["a", "b"]).draw("a", 3, random.Random(0)) == ["b"]
    assert pool.draw(own, 0, random.Random(0)) == []


class Numbers:
    """A source whose clips are constant, at their number over ten."""

    bad = ()

    def __init__(self, count):
        self.names = [f"clip/{index}" for index in range(count)]
        self.prompts = [f"prompt {index // 2}" for index in range(count)]
        self.made = []

    def batches(self):
        return [[index, index + 1] for index in range(0, len(self.names), 2)]

    def make(self, indices, latents):
        self.made.append((list(indices), latents is not None))
        clips = torch.stack([torch.full((3, 2, 4, 4), index / 10) for index in indices])
        return list(indices), torch.stack([torch.full((16, 2, 4, 4), float(index)) for index in indices]), clips


class Recording:
    axes = ("light", "length")

    def __init__(self, fails_at=None):
        self.calls, self.fails_at = [], fails_at

    def __call__(self, clips, prompts, fps):
        if len(self.calls) == self.fails_at:
            raise KeyboardInterrupt
        self.calls.append((clips[:, 0, 0, 0, 0].tolist(), list(prompts), fps))
        return torch.stack([clips[:, 0, 0, 0, 0], torch.tensor([float(len(prompt)) for prompt in prompts])], dim=1)


ENCODER = SimpleNamespace(prompt=lambda text: torch.ones(2, 16))


def scores_on(tmp_path, teacher, count=6):
    source = Numbers(count)
    scores_of = TeacherScores(teacher, "recording", LatentCache(tmp_path, {}), fps=8.0)
    assigned = assign_prompts(source, [True] * count, others=1)
    return scores_of, source, assigned


def test_an_interruption_costs_a_batch_and_nothing_is_scored_twice(tmp_path):
    scores_of, source, assigned = scores_on(tmp_path, Recording(fails_at=4))
    with pytest.raises(KeyboardInterrupt):
        list(scores_of.fill(source, assigned, ENCODER))
    assert [rows for rows, _ in source.made] == [[0, 1], [2, 3], [4, 5]]
    scores_of, source, assigned = scores_on(tmp_path, teacher := Recording())
    done = list(scores_of.fill(source, assigned, ENCODER))
    assert source.made == [([4, 5], False)]
    assert done[-1] == 3 + 6
    assert sorted(grey for clips, _, _ in teacher.calls for grey in clips) == pytest.approx([0.4, 0.4, 0.5, 0.5])
    assert all(fps == 8.0 for _, _, fps in teacher.calls)

    more = assign_prompts(source, [True] * 6, others=2)  # the clips are known, and most of the answers
    list(scores_of.fill(source, more, ENCODER))
    assert source.made[1:] == [([0, 1], True), ([2, 3], True), ([4, 5], True)]
    assert sum(len(prompts) for _, prompts, _ in teacher.calls[2:]) == 6


def test_pairs_hold_the_teacher_s_scores_under_their_prompt(tmp_path):
    scores_of, source, assigned = scores_on(tmp_path, Recording(), count=8)
    list(scores_of.fill(source, assigned, ENCODER))
    _, scores = scores_of.scores(assigned)
    assert len(scores) == 16
    mean, std = mean_and_std(scores[:, :1])
    mean, std = torch.cat([mean, torch.zeros(1)]), torch.cat([std, torch.ones(1)])
    pairs = scores_of.pairs(assigned, mean, std)
    assert {clip for both in pairs._clips for clip in both} == set(source.names)
    batch = pairs.batch(range(len(pairs)), torch.device("cpu"))
    number = batch.clean[:, :, 0, 0, 0, 0]  # (N, 2): a clip's latents are its number
    torch.testing.assert_close(batch.scores[:, 0], (number / 10 - mean[0]) / std[0])
    difference = batch.scores[:, 0, 0] - batch.scores[:, 0, 1]
    assert torch.equal(batch.preference[:, 0], difference.sign() * (difference.abs() > 0.25))
    own = scores_of.pairs(assigned, mean, std, own=True)
    assert len(own) == 4
    assert all(int(a[-1]) // 2 == int(b[-1]) // 2 for a, b in own._clips)
    with pytest.raises(ValueError, match="Expected clips that the teacher scored, but there are none"):
        scores_of.pairs([ScoredClip("clip/unknown", ("prompt",))], mean, std)


def test_regression_at_a_noise_level_finds_the_expectation_of_the_clean_score():
    r"""For unit-variance latents and a linear teacher E[r(x0) | x] = r(x) (1 - σ) / ((1 - σ)² + σ²)."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(40_000, 2, generator=generator)
    direction = torch.tensor([0.6, -0.8])
    for sigma in (0.2, 0.5, 0.9):
        level = torch.full((len(clean),), sigma)
        noisy = noised(clean, torch.randn(clean.shape, generator=generator), level)
        weight = torch.zeros(2, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight], max_iter=20)

        def closure(optimizer=optimizer, noisy=noisy, weight=weight, level=level):
            optimizer.zero_grad()
            raw, scores = (noisy @ weight)[:, None], (clean @ direction)[:, None]
            half = len(raw) // 2
            comparison = Comparison(
                raw[:half], raw[half:], torch.zeros(half, 1), level[:half], scores[:half], scores[half:]
            )
            loss = LOSSES["regression"](comparison).per_axis().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        exact = direction * (1 - sigma) / ((1 - sigma) ** 2 + sigma**2)
        torch.testing.assert_close(weight.detach(), exact, atol=0.02, rtol=0)


class Grey:
    """Clips of one grey each, whose latents show it under noise of their own."""

    bad = ()

    def __init__(self, numbers):
        self.names = [f"clip/{number}" for number in numbers]
        self.prompts = [f"prompt {number % 5}" for number in numbers]
        self._numbers = list(numbers)

    def batches(self):
        return [list(range(len(self.names)))]

    def make(self, indices, latents):
        generators = [torch.Generator().manual_seed(self._numbers[index]) for index in indices]
        grey = torch.cat([torch.rand(1, generator=generator) for generator in generators])
        noise = torch.stack([torch.randn(16, 2, 4, 4, generator=generator) for generator in generators])
        grey = grey.view(-1, 1, 1, 1, 1)
        return list(indices), noise + 2 * (grey - 0.5), grey.expand(-1, 3, 2, 4, 4)


def test_tells_held_out_clips_apart_and_knows_less_where_there_is_more_noise(tmp_path):
    """Ranked right, and regressed to the mean: the spread of E[r | x] falls with the noise, by the law of variance."""
    from accelerate import Accelerator
    from tiny import tiny_transformer

    torch.manual_seed(0)
    scores_of = TeacherScores(Recording(), "recording", LatentCache(tmp_path, {}), fps=8.0)
    trained, tested = Grey(range(96)), Grey(range(1000, 1064))
    assigned = [assign_prompts(source, [True] * len(source.names), others=1) for source in (trained, tested)]
    for source, clips in zip((trained, tested), assigned, strict=True):
        list(scores_of.fill(source, clips, ENCODER))
    mean, std = scores_of.scores(assigned[0])[1].mean(dim=0), torch.tensor([0.29, 1.0])
    training, held_out = (scores_of.pairs(clips, mean, std) for clips in assigned)
    objective = Objective(loss="regression", num_blocks=1)
    reward = LatentReward.from_transformer(
        tiny_transformer(), **objective.reward_options(), axes=("light", "length"), text_axes=("length",)
    )
    settings = TrainerSettings(steps=80, batch=16, lr=1e-2, trunk_lr=2e-3, warmup=10, ema=0.9)
    list(train(reward, training, objective, settings, tmp_path / "run", Accelerator(cpu=True)))
    batch = held_out.batch(range(len(held_out)), torch.device("cpu"))
    noise = torch.randn(batch.clean.shape)  # one of its own for each clip, which hides what sets it apart
    right, spreads = [], []
    for sigma in (0.1, 0.95):
        with torch.no_grad():
            level = torch.full((len(held_out),), sigma)
            scores = score_pairs(reward, batch.clean, noise, level, batch.conditioning)[..., 0]
        decided = batch.preference[:, 0] != 0
        right.append(((scores[:, 0] - scores[:, 1]).sign() == batch.preference[:, 0])[decided].float().mean().item())
        spreads.append(scores.std().item())
    assert right[0] > 0.9
    assert right[0] > right[1] + 0.05
    assert spreads[0] > 1.3 * spreads[1]


def test_a_command_distils_a_reward_that_ranks_held_out_clips_above_chance(folder, capsys):
    more = ["--clips", "256", "--clips-per-prompt", "8", "--hold-out", "0.4", "--other-prompts", "1"]
    assert command("train-reward", folder, "light", *more, "--steps", "80", "--batch", "16", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["axes"] == ["light"]
    assert report["held_out"] > 30
    low = report["accuracy"]["0.0-0.2"]["light"]
    assert low["pairs"] > 50
    assert low["accuracy"] > 0.62
    reward = LatentReward.from_pretrained(folder / "light" / "reward")
    assert reward.config.about["training"]["loss"] == "regression"
    assert reward.std[0] > 0
    card = (folder / "light" / "reward" / "README.md").read_text()
    assert "256 clips, sampled for the prompts of prompts.txt, scored by module" in card
    assert "no human labels" in card
    assert str(folder) not in card

    evaluated = ["--clips", "16", "--other-prompts", "1", "--clip-seed", "1000", "--json"]
    rewards = ["--reward", str(folder / "light" / "reward")]
    assert command("evaluate-reward", folder, "graded", *evaluated, *rewards) == 0
    graded = json.loads(capsys.readouterr().out)
    assert graded["rewards"][0]["axes"]["light"]["pairs"] == graded["pairs"] >= 16
    assert command("evaluate-reward", folder, "other", *evaluated, *rewards, teacher="Wanted") == 2
    assert "Expected a teacher of the rewards' axes (light), but" in capsys.readouterr().err


def test_video_files_and_samples_together_under_other_prompts(folder, tmp_path, capsys):
    table = tmp_path / "clips.csv"
    lines = [f"{index:02}.mp4,{PROMPTS[index]}" for index in range(12)]
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    rows = ["path,prompt", *lines, "gone.mp4,a red circle", "00.mp4,", f"{broken},a blue circle"]
    table.write_text("\n".join(rows))
    more = ["--videos", str(folder / "videos"), "--prompts", str(folder / "prompts.txt"), "--clips", "12"]
    more += ["--steps", "3", "--batch", "4", "--hold-out", "0.2", "--json", "--recommended-scale", "40"]
    more += ["--recommended-damping", "TA=2.5"]
    assert command("train-reward", folder, "both", *more, teacher="Wanted", source=table) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["axes"] == ["VQ", "TA"]
    assert report["pairs"] > 20
    reasons = {bad["row"]: bad["reason"] for bad in report["bad_rows"]}
    assert reasons.keys() == {14, 15, 16}
    assert "broken.mp4 cannot be decoded" in reasons[16]
    assert captured.err.count("left out: row") == 3
    reward = LatentReward.from_pretrained(folder / "both" / "reward")
    assert reward.config.text_axes == ["TA"]
    assert reward.recommended_scale == (40, 40)
    assert reward.recommended_damping == (0.0, 2.5)
    assert reward.recommended_fading is None


@pytest.mark.parametrize("given", [["--recommended-damping", "much"], ["--recommended-scale", "-1"]])
def test_what_cannot_be_recommended_is_refused_before_any_work(folder, capsys, given):
    assert command("train-reward", folder, "never", *given, teacher="Wanted") == 2
    name = given[0][2:].replace("-", "_")
    assert f"Expected `{name}` to be 0 or more" in capsys.readouterr().err
    assert not (folder / "never").exists()


def test_a_folder_of_videos_reads_the_prompts_beside_them(folder, tmp_path):
    encoder = SimpleNamespace(settings=None)
    source = VideoFiles(encoder, folder / "videos", batch=5)
    assert source.prompts == PROMPTS[:12]
    assert list(map(len, source.batches())) == [5, 5, 2]
    assert not source.bad
    (tmp_path / "alone.mp4").write_text("")
    assert [str(bad) for bad in VideoFiles(encoder, tmp_path).bad] == ["row 1: has no prompt"]
    with pytest.raises(ValueError, match=r"Expected videos \(\*.mp4\) in .*, but there are none"):
        VideoFiles(encoder, folder)


BAD = {
    "nobody": ((), {}, "Expected PAIRS.csv with labels, or a --teacher to do without"),
    "no clips": ((), {"teacher": "Brightness"}, "Expected clips for the teacher, but got none"),
    "no scores": (("--prompts", "FILE", "--clips", "4"), {"teacher": "Broken"}, "but got some that are not finite"),
    "no difference": (
        ("--prompts", "FILE", "--clips", "4"), {"teacher": "Constant"}, "Expected a teacher whose scores differ",
    ),
    "no axes": (("--prompts", "FILE"), {"teacher": "no_axes"}, "a callable with named `axes`"),
    "no such name": (("--prompts", "FILE"), {"teacher": "Nobody"}, "cannot be imported"),
    "no such file": (("--prompts", "nowhere.txt"), {"teacher": "Brightness"}, "Expected a text file of prompts"),
    "unknown words": (("--prompts", "WORDS", "--clips", "4"), {"teacher": "Brightness"}, "but got 'zebra'"),
    "nothing left": (
        ("--prompts", "FILE", "--clips", "4", "--hold-out", "1"), {"teacher": "Brightness"}, "hold out less",
    ),
    "axes of its own": (
        ("--prompts", "FILE", "--axes", "TA"), {"teacher": "Brightness"}, "Expected no --axes beside --teacher",
    ),
    "prompts alone": (("--prompts", "FILE"), {}, "Expected --teacher NAME beside --prompts"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "more", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(folder, tmp_path, capsys, options, more, message):
    (tmp_path / "words.txt").write_text("a red zebra\n")
    files = {"FILE": str(folder / "prompts.txt"), "WORDS": str(tmp_path / "words.txt")}
    teacher = [f"--teacher=module:{folder / 'teachers.py'}:{more['teacher']}"] if more else []
    options = [files.get(option, option) for option in options]
    where = ["--model", str(folder / "tiny"), "--out", str(tmp_path / "out"), *SHORT, *ENCODING, "--steps", "1"]
    assert cli.main(["train-reward", *teacher, *options, *where]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_bundled_prompts_are_those_of_a_split():
    from nrg_sampler.shapes.scenes import parse, split_of
    from nrg_sampler.training.distil import bundled_prompts

    for split in ("train", "validation", "test"):
        texts = bundled_prompts(split, 12)
        assert len(texts) == 12
        assert {split_of(parse(text)) for text in texts} == {split}
