"""The ablation at a tiny size: what it runs, resumes and writes."""

from __future__ import annotations

import csv
import itertools
import json

import pytest
import torch

from nrg_sampler.shapes.oracle import AXES
from nrg_sampler.shapes.scenes import sample_prompt
from nrg_sampler.shapes.train import ablation
from nrg_sampler.shapes.train.pool import Pool
from nrg_sampler.shapes.train.text import attribute_labels

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
    asked = [prompt for prompt in (sample_prompt(rng) for _ in range(groups)) for _ in range(members)]
    return Pool(
        torch.randn(count, 16, 7, 8, 8, generator=generator).half(),
        attribute_labels(asked),
        torch.arange(groups).repeat_interleave(members),
        torch.rand(count, 3, generator=generator),
        torch.rand(count, 5 + 8 + 9 + 4 + 2, generator=generator),
    )


def test_every_cell_changes_one_choice():
    planned = ablation.cells(tuple(ablation.FACTORS), (0, 1))
    assert len({cell.name for cell in planned}) == len(planned)
    for cell in planned:
        changed = [name for name, value in vars(cell.recipe).items() if value != getattr(ablation.DEFAULT, name)]
        assert changed == ([] if cell.factor == "default" else [cell.factor])
    with pytest.raises(ValueError, match="Expected factors from loss, .* but got colour"):
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
    with pytest.raises(ValueError, match="Expected cells made with .*'steps': 3.* was made with .*'steps': 2"):
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
    assert found["VQ"]["mean"] == pytest.approx(75.0) and found["VQ"]["spread"] == pytest.approx(7.07)
    assert found["0.8-1.0"]["mean"] == pytest.approx(55.0) and found["0.8-1.0"]["seeds"] == 2


def test_says_which_stage_comes_first(tmp_path):
    with pytest.raises(FileNotFoundError, match="made by the stage `first-reward`"):
        list(ablation.run_ablation(tmp_path))


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # RMS norm under autocast
@pytest.mark.parametrize("name", ["clean-reward", "noised-reward"])
def test_the_compared_rewards_differ_in_the_noise_alone(folder, monkeypatch, name):
    from nrg_sampler.shapes.train import reward as training

    seen = []

    def noised(clean, noise, sigma):
        seen.append((clean, noise, sigma))
        return training_noised(clean, noise, sigma)

    training_noised = training.noised
    monkeypatch.setattr(training, "noised", noised)
    monkeypatch.setattr(training, "POOLS", training.FIRST_POOLS)  # without guided samples
    for grade in ("accuracy_by_sigma", "calibrate"):
        monkeypatch.setattr(training, grade, lambda *args, **options: {})
    (numbers,) = training.train_compared_reward(folder, name, steps=1, batch=8)
    assert numbers["step"] == 1 and (folder / name / "config.json").is_file()
    ((clean, noise, sigma),) = seen
    assert sigma.eq(0).all() if name == "clean-reward" else sigma.gt(0).all()
    # the rest is drawn alike
    generator = torch.Generator().manual_seed(0)
    torch.randn(2, 6, 3, generator=generator)  # the annotator, on six pairs of a group
    torch.rand(2, generator=generator)
    expected = torch.randn(2, *clean.shape[1:], generator=generator).repeat_interleave(4, dim=0)
    torch.testing.assert_close(noise, expected)
