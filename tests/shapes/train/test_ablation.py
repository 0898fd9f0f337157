"""The ablation at a tiny size: what it runs, resumes and writes."""

from __future__ import annotations

import csv
import itertools
import json
from dataclasses import replace

import pytest
import torch

from nrg_sampler.shapes.oracle import AXES
from nrg_sampler.shapes.scenes import sample_prompt
from nrg_sampler.shapes.train import ablation, rating
from nrg_sampler.shapes.train.curriculum import FIRST_POOLS
from nrg_sampler.shapes.train.pool import Pool
from nrg_sampler.shapes.train.train_text import attribute_labels

SMALL = {"steps": 2, "batch": 8, "groups": 4, "seeds": 2, "factors": ("trunk",)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The bundled pipeline as the stages leave it, and pools of random latents."""
    from nrg_sampler.checkpoints import bundled_folder

    folder = tmp_path_factory.mktemp("ablation")
    for part in ("vae", "text_encoder", "tokenizer", "transformer"):
        (folder / part).symlink_to(bundled_folder("pipeline") / part)
    for number, (kind, split) in enumerate(itertools.product(("rendered", "sampled"), ("train", "validation"))):
        random_pool(number).save(folder / f"pool-{kind}-{split}.safetensors")
    return folder


def random_pool(seed, groups=60, members=4):
    import random

    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    count = groups * members
    wanted = [prompt for prompt in (sample_prompt(rng) for _ in range(groups)) for _ in range(members)]
    return Pool(
        torch.randn(count, 16, 2, 4, 4, generator=generator).half(),
        attribute_labels(wanted),
        torch.arange(groups).repeat_interleave(members),
        torch.rand(count, 3, generator=generator),
        torch.rand(count, 5 + 8 + 9 + 4 + 2, generator=generator),
    )


def test_every_cell_changes_one_choice():
    planned = ablation.cells(tuple(ablation.FACTORS), (0, 1))
    assert len({cell.name for cell in planned}) == len(planned)
    for cell in planned:
        changed = [name for name, value in vars(cell.objective).items() if value != getattr(ablation.DEFAULT, name)]
        assert changed == ([] if cell.factor == "default" else [cell.factor])
    with pytest.raises(ValueError, match=r"Expected factors from loss, .* but got colour"):
        ablation.cells(("colour",), (0,))


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # RMS norm under autocast
def test_trains_grades_resumes_and_writes_the_tables(folder, monkeypatch):
    run = ablation.run_ablation(folder, **SMALL)
    for numbers in run:
        if numbers["cell"] == 2:
            break
    run.close()  # in the middle of the third cell
    done = {file.name: file.read_text() for file in (folder / "ablation").glob("*.json")}
    assert sorted(done) == ["default-seed0.json", "trunk-lora-seed0.json"]
    steps = list(ablation.run_ablation(folder, **SMALL))
    assert {numbers["cell"] for numbers in steps} == set(range(2, 6))
    assert all((folder / "ablation" / name).read_text() == text for name, text in done.items())
    assert not list((folder / "ablation").glob("*.pt"))
    with open(folder / "ablation.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 6 * 2 * 5 * 3  # cells, kinds of pairs, noise levels, axes
    summary = json.loads((folder / "ablation.json").read_text())["rows"]
    assert {row["seeds"] for row in summary} == {2}
    lines = (folder / "ablation.md").read_text().splitlines()
    assert sum(line.startswith("| trunk: frozen |") for line in lines) == 2
    with pytest.raises(ValueError, match=r"Expected cells made with .*'steps': 3.* was made with .*'steps': 2"):
        list(ablation.run_ablation(folder, **{**SMALL, "steps": 3}))


def test_averages_seeds_over_reliable_noise_levels():
    rows = [
        {"factor": "default", "value": "default", "seed": seed, "pairs_kind": "mixed", "sigma": level, "axis": axis}
        | {"accuracy": accuracy}
        for seed, shift in ((0, 0.0), (1, 0.1))
        for axis in AXES
        for level, accuracy in (("0.0-0.2", 0.8 + shift), ("0.6-0.8", 0.6 + shift), ("0.8-1.0", 0.5 + shift))
    ]
    found = {row["column"]: row for row in ablation.summarise(rows)}
    assert found["VQ"]["mean"] == pytest.approx(75.0)
    assert found["VQ"]["spread"] == pytest.approx(7.07)
    assert found["0.8-1.0"]["mean"] == pytest.approx(55.0)
    assert found["0.8-1.0"]["seeds"] == 2


def test_says_which_stage_comes_first(tmp_path):
    with pytest.raises(FileNotFoundError, match="made by the stage `first-reward`"):
        list(ablation.run_ablation(tmp_path))


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # RMS norm under autocast
@pytest.mark.parametrize("name", ["clean-reward", "noised-reward"])
def test_the_compared_rewards_differ_in_the_noise_alone(folder, monkeypatch, name):
    from nrg_sampler.shapes.train import train_reward as training

    seen = []

    def noised(clean, noise, sigma):
        seen.append((clean, noise, sigma))
        return original(clean, noise, sigma)

    original = rating.noised
    monkeypatch.setattr(rating, "noised", noised)
    without_guided_samples(monkeypatch)
    (numbers,) = training.train_reward(folder, name, steps=1, batch=8)
    assert numbers["step"] == 1
    assert (folder / name / "config.json").is_file()
    ((clean, noise, sigma),) = seen
    assert sigma.eq(0).all() if name == "clean-reward" else sigma.gt(0).all()
    # the rest is drawn alike
    generator = torch.Generator().manual_seed(0)
    torch.randn(2, 6, 3, generator=generator)  # the annotator, on six pairs of a group
    torch.rand(2, generator=generator)
    expected = torch.randn(2, *clean.shape[1:], generator=generator).repeat_interleave(4, dim=0)
    torch.testing.assert_close(noise, expected)


def without_guided_samples(monkeypatch):
    """Train every stage on the first pools, and grade nothing."""
    from nrg_sampler.shapes.train import train_reward as training

    stages = {name: replace(stage, pools=FIRST_POOLS) for name, stage in training.CURRICULUM.items()}
    monkeypatch.setattr(training, "CURRICULUM", stages)
    for grade in ("accuracy_by_sigma", "calibrate"):
        monkeypatch.setattr(training, grade, lambda *args, **options: {})


def losses_of(stage, folder, monkeypatch, learned=0.0):
    """The model and the loss that a stage would train with; training would move the queries by ``learned``."""
    from nrg_sampler.shapes.train import train_reward as training

    kept = []

    def fit(trained, loss, optimizers, settings, checkpoint):
        kept.extend((trained["reward"], loss))
        with torch.no_grad():
            trained["reward"].queries.add_(learned)
        yield {"step": settings.steps}

    monkeypatch.setattr(training, "fit", fit)
    without_guided_samples(monkeypatch)
    list(training.train_reward(folder, stage, steps=1, batch=8))
    return kept


@pytest.mark.parametrize(
    ("stage", "start"),
    [
        ("second-reward", "clean-reward"),
        ("third-reward", "second-reward"),
        ("robust-reward", "third-reward"),
        ("reward", "robust-reward"),
    ],
)
def test_later_rewards_start_from_the_one_before(folder, monkeypatch, tmp_path, stage, start):
    from nrg_sampler.shapes.train import train_reward as training

    for file in folder.iterdir():
        if not file.name.endswith("reward"):
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(FileNotFoundError, match=f"made by the stage `{start}`"):
        list(training.train_reward(tmp_path, stage, steps=1))
    untrained, _ = losses_of("first-reward", tmp_path, monkeypatch)
    with torch.no_grad():
        untrained.queries.add_(1.0)
        untrained.blocks[0].ffn.net[2].weight.mul_(0.5)
    untrained.save_pretrained(tmp_path / start)
    trained, _ = losses_of(stage, tmp_path, monkeypatch, learned=0.5)
    untrained.queries.data.add_(0.5 * (1 - training.CURRICULUM[stage].kept))
    for name, value in untrained.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], value)


def test_later_rewards_learn_scores_beside_pairs(folder, monkeypatch):
    from nrg_sampler.shapes.train import train_reward as training

    drawn = {}

    def rate(reward, pool, rows, labels, *rest):
        drawn["truth"] = training.PairSampler(pool).ratings(rows, labels[:, 0])  # (2, 4, 3)
        drawn["disturbance"] = rest[-1]
        return drawn["raw"][:, None, :, None], None

    monkeypatch.setattr(training, "rate_groups", rate)
    drawn["raw"] = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    untrained, pairs = losses_of("first-reward", folder, monkeypatch)
    pairs_alone, _ = pairs(0, torch.Generator().manual_seed(5))
    assert drawn["disturbance"] == 0
    (folder / "third-reward").mkdir()
    monkeypatch.setattr(training.LatentReward, "from_pretrained", lambda path: untrained)
    _, both = losses_of("robust-reward", folder, monkeypatch)
    with_scores, _ = both(0, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    torch.randn(2, 6, 3, generator=generator)  # the annotator, on six pairs of a group
    scores = drawn["truth"] + training.ANNOTATOR_NOISE * torch.randn(2, 4, 3, generator=generator)
    logits_per_deviation = torch.tensor(5.0).log() / training.TIE
    error = (drawn["raw"] / logits_per_deviation - scores).square().mean(dim=(0, 1)).sum()
    torch.testing.assert_close(with_scores - pairs_alone, training.SCORE_WEIGHT * error)
    assert drawn["disturbance"] == training.CURRICULUM["robust-reward"].disturbance
    assert with_scores.requires_grad
    (folder / "third-reward").rmdir()


def test_held_out_pools_leave_out_what_is_for_training_alone(tmp_path, monkeypatch):
    from nrg_sampler.shapes.train import pool as training

    made = []

    def rendered(pipe, count, split, seed, file, faults):
        made.append((file.name, count, seed, faults))
        yield count

    def sampled(pipe, count, group, split, seed, file, reward):
        made.append((file.name, count, seed, reward))
        yield count

    monkeypatch.setattr(training, "rendered_pool", rendered)
    monkeypatch.setattr(training, "sampled_pool", sampled)
    counts = {"rendered": 50, "faultless": 9, "sampled": 8, "sampled-more": 12, "guided": 4}
    held_out = {"rendered": 5, "sampled": 4, "guided": 2}
    list(training.prepare_pools(tmp_path, None, 3, counts, {"guided": "reward"}, held_out))
    assert made == [
        ("pool-rendered-train.safetensors", 50, 3, True),
        ("pool-faultless-train.safetensors", 9, 3, False),
        ("pool-sampled-train.safetensors", 8, 3, None),
        ("pool-sampled-more-train.safetensors", 12, 4, None),
        ("pool-guided-train.safetensors", 4, 3, "reward"),
        ("pool-rendered-validation.safetensors", 5, 3, True),
        ("pool-sampled-validation.safetensors", 4, 3, None),
        ("pool-guided-validation.safetensors", 2, 3, "reward"),
    ]


def test_half_of_the_clips_are_moved_along_the_reward_s_gradient():
    from nrg_sampler.shapes.train.rating import disturbed

    patterns = torch.randn(3, 4, 2, 4, 4, generator=torch.Generator().manual_seed(0))

    def reward(latents, sigma, conditioning):
        return torch.einsum("bcthw,acthw->ba", latents, patterns)

    latents = torch.randn(400, 4, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    moved = disturbed(reward, latents, torch.rand(400), None, 5.0, torch.Generator().manual_seed(2))
    assert moved.shape == latents.shape
    assert not moved.requires_grad
    moves = (moved - latents).flatten(1)
    norms = moves.norm(dim=1)
    still = norms < 1e-6
    assert 0.4 < still.float().mean() < 0.6
    assert norms.max() <= 5.0001
    assert norms[~still].mean() == pytest.approx(2.5, abs=0.4)
    # each is a mix of the axes' gradients, which are the patterns, with shares and signs of its own
    shares = torch.linalg.lstsq(patterns.flatten(1).T, moves[~still].T).solution  # (3, moved)
    torch.testing.assert_close(patterns.flatten(1).T @ shares, moves[~still].T, atol=1e-4, rtol=1e-3)
    assert ((shares > 0).float().mean(dim=1) > 0.3).all()
    assert ((shares > 0).float().mean(dim=1) < 0.7).all()
    expected = torch.randn(400, 3, generator=torch.Generator().manual_seed(2))[~still]
    cosine = torch.nn.functional.cosine_similarity(shares.T, expected)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_the_average_lies_between_the_weights_before_and_after():
    from nrg_sampler.shapes.train.train_reward import average

    after, before = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    expected = 0.6 * after.weight.detach() + 0.4 * before.weight.detach()
    average(after, before, 0.4)
    torch.testing.assert_close(after.weight.detach(), expected)
