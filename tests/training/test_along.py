"""Rewards along the sampler's own trajectories: what is kept, what is read, and how it is graded."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from torch import Tensor

from nrg_sampler.flow import clean_from
from nrg_sampler.hosts.pipeline import NRGFlowPipeline
from nrg_sampler.hosts.recording import Recording, recorded_steps
from nrg_sampler.rewards.base import Conditioning
from nrg_sampler.training.along import grade_along, score_along, table_along
from nrg_sampler.training.cache import LatentCache, half, prompt_name, sigmas_name, step_name
from nrg_sampler.training.objective import Objective
from nrg_sampler.training.pairs import PairData
from nrg_sampler.training.settings import RewardTraining, TeacherClips
from nrg_sampler.training.sources import Sample
from nrg_sampler.training.trainer import compare, draw_steps

SHAPE = (2, 3, 4, 4)
LEVELS = (0.9, 0.7, 0.3)


@pytest.fixture
def data(tmp_path):
    """Eight clips of two prompts; the first number of a clip's latents is its score, hidden by noise on the way."""
    cache, generator = LatentCache(tmp_path, {}), torch.Generator().manual_seed(0)
    for clip in range(8):
        clean = torch.full(SHAPE, float(clip))
        noise = torch.randn(SHAPE, generator=generator)
        latents = [(1 - level) * clean + level * noise for level in LEVELS]
        entries = {f"clip {clip}": half(clean), sigmas_name(f"clip {clip}"): torch.tensor(LEVELS)}
        entries |= {
            step_name(f"clip {clip}", place): half(torch.stack([own, noise - clean]))
            for place, own in enumerate(latents)
        }
        cache.add(entries)
    cache.add({prompt_name(prompt): half(torch.randn(3, 5, generator=generator)) for prompt in "ab"})
    pairs = [(f"clip {a}", f"clip {b}") for a, b in ((0, 1), (3, 2), (4, 5), (7, 6))]
    preference = torch.tensor([[-1.0], [1.0], [-1.0], [1.0]])
    return PairData(("light",), pairs, ["a", "a", "b", "b"], preference, cache)


class Reads:
    """A reward that returns the mean of the latents, or of what the velocity predicts."""

    axes = ("light",)

    def __init__(self, needs_velocity: bool) -> None:
        self.needs_velocity, self.seen = needs_velocity, []

    def __call__(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning, members: bool = False) -> Tensor:
        self.seen.append((latents, sigma, conditioning.velocity))
        read = clean_from(latents, conditioning.velocity, sigma) if self.needs_velocity else latents
        scores = read.mean(dim=(1, 2, 3, 4))[:, None]
        return scores[:, None] if members else scores


def test_a_recording_has_latents_and_velocity_of_each_step_and_changes_nothing(components):
    pipe = NRGFlowPipeline.from_pipe(WanPipeline(**components, scheduler=FlowMatchEulerDiscreteScheduler()))
    pipe.set_progress_bar_config(disable=True)
    asked = {
        "height": 16,
        "width": 16,
        "num_frames": 5,
        "num_inference_steps": 6,
        "output_type": "latent",
        "reward_scale": 0,
    }

    def sample():
        return pipe("a red circle", generator=torch.Generator().manual_seed(1), **asked).frames

    plain = sample()
    with recorded_steps(pipe) as recording:
        assert torch.equal(sample(), plain)
        assert torch.equal(sample(), plain)  # the recording is of this one alone
    assert torch.equal(sample(), plain)
    assert recording.sigmas == pytest.approx(pipe.scheduler.sigmas[:-1].tolist())
    sigmas, steps = recording.nearest((recording.sigmas[1], recording.sigmas[-1]))
    assert steps.shape == (1, 2, 2, *plain.shape[1:])
    # One Euler step from the last latents along their velocity is the finished clip.
    last = steps[:, -1].float()
    torch.testing.assert_close(last[:, 0] - sigmas[-1] * last[:, 1], plain, atol=2e-2, rtol=1e-2)
    with pytest.raises(ValueError, match=r"Expected noise levels of 2 steps, but the 6 steps of this run have sigmas"):
        recording.nearest((0.5, 0.5001))


def test_nothing_recorded_is_said():
    with pytest.raises(ValueError, match="Expected steps of a pipeline, but none were recorded"):
        Recording().nearest((0.5,))


def test_a_batch_has_the_steps_that_were_asked_for(data):
    assert data.levels == pytest.approx(LEVELS)
    batch = data.batch([0, 1], torch.device("cpu"), [2, None])
    assert batch.steps.read.tolist() == [True, False]
    assert batch.steps.sigma.tolist() == [pytest.approx([0.3, 0.3]), [0.0, 0.0]]
    predicted = clean_from(batch.steps.latents[0], batch.steps.velocity[0], batch.steps.sigma[0])
    torch.testing.assert_close(predicted, batch.clean[0], atol=2e-2, rtol=1e-2)
    assert batch.steps.latents[1].abs().max() == 0
    assert data.batch([0], torch.device("cpu")).steps is None


@pytest.mark.parametrize("reads_prediction", [True, False])
def test_pairs_are_read_along_trajectories_and_the_others_clean_or_noised(data, reads_prediction):
    objective = Objective(trajectories=0.5, reads_prediction=reads_prediction)
    reward, places = Reads(reads_prediction), range(4)
    steps = [1, None, 0, None]
    batch = data.batch([0, 1, 2, 3], torch.device("cpu"), steps)
    comparison = compare(reward, batch, objective, 0, 0, places)
    latents, sigma, velocity = reward.seen[0]
    latents, sigma = latents.unflatten(0, (4, 2)), sigma.unflatten(0, (4, 2))
    torch.testing.assert_close(latents[0], batch.steps.latents[0])
    assert sigma[[0, 2]].tolist() == [pytest.approx([0.7, 0.7]), pytest.approx([0.9, 0.9])]
    assert comparison.first.shape == (4, 1)
    if reads_prediction:
        assert torch.equal(latents[1], batch.clean[1]) and sigma[1].tolist() == [0, 0]
        torch.testing.assert_close(velocity.unflatten(0, (4, 2))[2], batch.steps.velocity[2])
        torch.testing.assert_close(comparison.first[0], torch.tensor([0.0]), atol=2e-2, rtol=0)  # clip 0, predicted
    else:
        assert velocity is None and (latents[1] - batch.clean[1]).abs().max() > 0.01 and sigma[1, 0] > 0


def test_the_share_of_pairs_along_trajectories_is_that_of_the_objective():
    drawn = draw_steps(3, Objective(trajectories=0.7), 0, 5, range(2000))
    along = [step for step in drawn if step is not None]
    assert len(along) / 2000 == pytest.approx(0.7, abs=0.04)
    assert all(along.count(step) / len(along) == pytest.approx(1 / 3, abs=0.05) for step in range(3))
    assert draw_steps(3, Objective(trajectories=0.7), 0, 5, range(7, 9)) == drawn[7:9]


def test_the_grade_is_the_share_of_pairs_ranked_as_their_finished_clips(data):
    differences = torch.cat(list(score_along(Reads(needs_velocity=True), data, torch.device("cpu"), batch=3)))
    assert differences.shape == (4, 3, 1)
    report = grade_along(differences, data)["light"]
    assert report["by_sigma"] == {"0.90": 1.0, "0.70": 1.0, "0.30": 1.0}  # the velocities are the true ones
    # By hand: at 0.9 and 0.7, which are where guidance acts, 2 of 4 and 3 of 4 right, and at 0.3 none.
    signs = torch.tensor([[1, 1, -1], [1, 1, -1], [-1, 1, -1], [-1, -1, -1]]).double()
    by_hand = grade_along((signs * data.preference)[..., None], data)["light"]
    assert by_hand["by_sigma"] == {"0.90": 0.5, "0.70": 0.75, "0.30": 0.0}
    assert by_hand["accuracy"] == pytest.approx(0.625) and (by_hand["prompts"], by_hand["pairs"]) == (2, 4)
    assert (by_hand["low"], by_hand["high"]) == (0.25, 1.0)  # prompt a has 1, prompt b 0.25
    table = table_along({"light": by_hand})
    assert table.splitlines()[2] == "| light | 62.5 [25.0, 100.0] | 4 | 50.0 | 75.0 | 0.0 |"


def test_ties_are_left_out_and_an_axis_of_ties_has_no_accuracy(data):
    data.preference[:] = 0
    report = grade_along(torch.ones(4, 3, 1), data)["light"]
    assert report["pairs"] == 0 and "accuracy" not in report
    assert all(math.isnan(share) for share in report["by_sigma"].values())
    assert table_along({"light": report}).splitlines()[2].startswith("| light | - | 0 |")


def test_clips_without_steps_are_refused(data):
    with pytest.raises(ValueError, match="Expected clips whose trajectories are kept"):
        next(score_along(Reads(needs_velocity=False), SimpleNamespace(levels=[]), torch.device("cpu")))


def test_samples_with_and_without_kept_steps_are_cached_apart():
    plain = Sample("a red circle", 0, 25, 4.0)
    # as it was before steps could be kept, so that caches stay good
    assert plain.name == "sample/567376965e037dae69dfdf4c7c2f46d14173e5994319ada85a7af80d2e39e4de"
    assert plain.name != Sample("a red circle", 0, 25, 4.0, (0.5,)).name


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda out: TeacherClips("pixel", prompts=["a"], levels=(0.5, 0.5)), "different noise levels above 0"),
        (lambda out: TeacherClips("pixel", prompts=["a"], levels=(1.0,)), r"below 1, but got \(1.0,\)"),
        (lambda out: TeacherClips("pixel", files=out, levels=(0.5,)), "whose way there nobody knows"),
        (lambda out: Objective(trajectories=1.5), "`trajectories` to be a share from 0 to 1, but got 1.5"),
        (lambda out: Objective(reads_prediction=True), "Expected `trajectories` above 0 for a reward that reads"),
        (
            lambda out: RewardTraining(
                TeacherClips("pixel", prompts=["a"]), out, objective=Objective(trajectories=0.5)
            ),
            "Expected `levels` of the teacher's clips",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path, make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(tmp_path)


def test_clips_along_trajectories_choose_the_objective_for_them(tmp_path):
    clips = TeacherClips("pixel", prompts=["a"], levels=(0.5,))
    chosen = RewardTraining(clips, tmp_path).chosen_objective
    assert chosen.reads_prediction and chosen.trajectories == 0.85 and chosen.loss == "regression"
    assert "trajectories" not in Objective().identity() and "trajectories" in chosen.identity()
