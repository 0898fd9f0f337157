"""More like this, less like this: the handlers of the marks on a tiny model, without Gradio."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_ui import request, save_model, studio_of

from nrg_sampler import cli
from nrg_sampler.runs.manifest import Manifest
from nrg_sampler.ui import api
from nrg_sampler.ui.handlers import Studio, View


@pytest.fixture
def studio(components: dict[str, Any], tmp_path: Path) -> Iterator[Studio]:
    models, outputs = (tmp_path / name for name in ("models", "outputs"))
    outputs.mkdir()
    studio = studio_of(save_model(components, models), outputs)
    yield studio
    studio.leave("me")
    studio.leave("you")


def run(views: Iterator[View]) -> dict[str, Any]:
    """Return what the page shows at the end."""
    page: dict[str, Any] = {}
    for view in views:
        page |= {name: value for name, value in vars(view).items() if value is not None}
    return page


def test_marks_pull_the_next_candidates_and_the_command_line_replays_them(
    studio: Studio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = api.generate(studio, "you", request(studio, seed=13))[1]["clips"][0]["sha256"]
    page = run(studio.best_of("me", request(studio, seed=10), 3))
    assert page["best"].count("More like this") == page["best"].count("Less like this") == 3
    page = run(studio.again("me", 2, 4.0))
    assert "Expected a mark, but there is none" in page["status"]
    places = [studio.pick("me", "best", place).values["seed"] for place in range(3)]  # type: ignore[index]
    for place in range(3):
        assert f"More like seed {places[place]}" in (studio.mark("me", place, 1).status or "")
    page = run(studio.again("me", 2, 4.0))
    assert "all are marked alike" in page["status"]
    studio.mark("me", 1, 0)
    studio.mark("me", 2, -1)
    assert studio.visits.get("me").candidates.marks == {places[0]: 1, places[1]: 0, places[2]: -1}
    assert "no longer there" in (studio.mark("me", 3, 1).status or "")
    assert "no longer there" in (studio.mark("me", 0, 7).status or "")
    page = run(studio.again("me", 2, 4.0))
    assert "Done" in page["status"]
    assert "seed 13" in page["best"]
    assert "seed 14" in page["best"]
    assert 'data-mark="1" aria-pressed="true"' not in page["best"]
    ahead = studio.visits.get("me").candidates.ahead
    assert ahead is not None
    assert dict(zip(ahead.seeds, ahead.scores, strict=True)) == {places[0]: 1, places[1]: 0, places[2]: -1}
    place = [studio.pick("me", "best", place).values["seed"] for place in range(2)].index(14)  # type: ignore[index]
    studio.mark("me", place, 1)
    page = run(studio.again("me", 2, 4.0))  # a second round, whose samples were pulled themselves
    assert studio.visits.get("me").candidates.ahead.before == ahead  # type: ignore[union-attr]
    manifests = sorted(studio.visits.get("me").folder.rglob("clip-*.json"))
    assert [Manifest.read(path).seed for path in manifests] == [15, 16]
    assert Manifest.read(manifests[0]).clips[0].sha256 != plain
    assert cli.main(["generate", "--replay", str(manifests[0]), "--out", str(tmp_path)]) == 0
    assert "identical" in capsys.readouterr().out
