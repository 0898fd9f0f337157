"""Manifests of bundled models that were exchanged since."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nrg_sampler import cli
from nrg_sampler.checkpoints import bundled_folder
from nrg_sampler.files import fingerprint
from nrg_sampler.runs import earlier
from nrg_sampler.runs.earlier import PIPELINES, REWARDS, require_todays
from nrg_sampler.runs.manifest import Manifest

FILE = Path(__file__).parents[1] / "data" / "first" / "manifest.json"


def exchanged(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Let the bundled files of a part be others than they are."""
    folder = bundled_folder("pipeline" if part == "model" else part)
    monkeypatch.setattr(
        earlier, "model_fingerprint", lambda source: "new" if source == folder else fingerprint(source)
    )


@pytest.mark.parametrize("part", ["model", "reward"])
def test_a_manifest_of_what_was_exchanged_is_refused_with_the_version_that_has_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, part: str
) -> None:
    exchanged(monkeypatch, part)
    assert cli.main(["generate", "--replay", str(FILE), "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"Expected a manifest of the bundled {part} as it is now, but {FILE} is of that of 0.1.0" in said
    assert "pip install git+https://github.com/nrg-sampler/nrg-sampler@v0.1.0." in said
    assert not list(tmp_path.iterdir())


def test_what_is_still_bundled_and_what_was_never_bundled_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest.read(FILE)
    assert manifest.fingerprints["model"] in PIPELINES and manifest.fingerprints["reward"] in REWARDS
    monkeypatch.setattr(
        earlier,
        "model_fingerprint",
        lambda source: manifest.fingerprints["reward" if source.name == "reward" else "model"],
    )
    require_todays(manifest, "manifest.json")
    exchanged(monkeypatch, "model")
    require_todays(replace(manifest, fingerprints={"model": "another", "reward": "another"}), "manifest.json")
    require_todays(replace(manifest, recipe=replace(manifest.recipe, model="folder", reward="own")), "manifest.json")


def test_an_unguided_run_asks_for_no_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest.read(FILE)
    exchanged(monkeypatch, "reward")
    with pytest.raises(ValueError, match="bundled reward as it is now"):
        require_todays(manifest, "manifest.json")
    unguided = replace(manifest.recipe, guidance=replace(manifest.recipe.guidance, scale=0))
    require_todays(replace(manifest, recipe=unguided), "manifest.json")
