"""The page's handlers on a tiny model, without Gradio."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_ui import request, save_model, studio_of

from nrg_sampler import cli
from nrg_sampler.runs.manifest import Manifest
from nrg_sampler.ui import api, results
from nrg_sampler.ui.engine import Model
from nrg_sampler.ui.handlers import Studio, View
from nrg_sampler.video import frames_sha256, to_uint8


@pytest.fixture(scope="module")
def model(components: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Model:
    return save_model(components, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def shared(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    """A studio with the tiny model, and one that is not there."""
    return studio_of(model, tmp_path_factory.mktemp("outputs"), Model("./nowhere"))


@pytest.fixture
def studio(shared: Studio) -> Iterator[Studio]:
    yield shared
    shared.leave("me")
    shared.leave("you")


def run(views: Iterator[View]) -> tuple[list[View], dict[str, Any]]:
    """Return every view, and what the page shows at the end."""
    seen = list(views)
    page: dict[str, Any] = {}
    for view in seen:
        page |= {name: value for name, value in vars(view).items() if value is not None}
    return seen, page


def transformer_calls(studio: Studio) -> list[float]:
    """Return a list to which the moment of every network call is added from now on."""
    moments: list[float] = []
    pipe = studio.engine.loaded(next(iter(studio.engine.models)))
    pipe.transformer.register_forward_pre_hook(lambda *_: moments.append(time.perf_counter()))
    return moments


def files_of(studio: Studio, name: str) -> list[str]:
    return sorted(path.name for path in studio.visits.get(name).folder.rglob("*") if path.is_file())


def test_a_pair_arrives_unguided_first_with_progress_and_ends_with_everything(studio: Studio) -> None:
    seen, page = run(studio.compare("me", request(studio)))
    first = next(index for index, view in enumerate(seen) if view.unguided and "<video" in view.unguided)
    last = next(index for index, view in enumerate(seen) if view.guided and "<video" in view.guided)
    assert first < last
    assert seen[0].busy is True
    assert page["busy"] is False
    steps = [view.status for view in seen if view.status and "step" in view.status]
    assert "Unguided · step 1 of 4" in steps[0]
    assert "Guided · step 4 of 4" in steps[-1]
    assert any(view.guided and "data:image/jpeg" in view.guided for view in seen)
    assert "VQ +" in page["verdict"] or "VQ -" in page["verdict"]
    assert "its target: no evidence" in page["verdict"]  # no oracle for this model
    assert page["curves"].count("<polyline") == 5
    assert page["files"].count("download=") == 4
    assert 'aria-pressed="true"' in page["history"]
    wanted = [
        "compare.json",
        "compare.mp4",
        "difference.mp4",
        "guided.mp4",
        "guided.png",
        "unguided.mp4",
        "unguided.png",
    ]
    assert files_of(studio, "me") == wanted


def test_the_command_line_replays_the_manifest_of_the_page(
    studio: Studio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(studio.compare("me", request(studio, seed=3, scheduler="unipc")))
    (result,) = studio.visits.get("me").results
    command = ["generate", "--replay", str(result.folder / "compare.json"), "--out", str(tmp_path)]
    assert cli.main(command) == 0
    assert "identical" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes", [{}, {"scheduler": "unipc", "max_push": None, "every": 2}], ids=["usual", "changed"]
)
def test_the_python_makes_the_guided_clip_again(
    changes: dict[str, Any], studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, page = run(studio.compare("me", request(studio, seed=5, weights="1:0:0.5", strength=3.0, **changes)))
    (result,) = studio.visits.get("me").results
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(page["snippet"], "snippet.py", "exec"), names)
    assert frames_sha256(to_uint8(names["video"])) == result.manifest.clips[-1].sha256
    assert (tmp_path / "guided.mp4").stat().st_size > 0


def test_a_run_is_restored_with_its_settings(studio: Studio) -> None:
    run(studio.compare("me", request(studio, seed=1, weights="1:0:0")))
    run(studio.compare("me", request(studio, seed=2, weights="0:1:0")))
    latest, earlier = studio.restore("me", 0), studio.restore("me", 1)
    assert latest.values is not None
    assert earlier.values is not None
    assert (latest.values["seed"], earlier.values["seed"]) == (2, 1)
    assert earlier.values["weights"] == "1:0:0"
    assert earlier.guided != latest.guided
    assert "no longer there" in (studio.restore("me", 2).status or "")


def test_a_sweep_fills_its_triangle_and_a_clip_gives_its_weights(studio: Studio) -> None:
    seen, page = run(studio.sweep("me", request(studio), 2))
    assert page["sweep"].count("<video") == 6
    assert page["sweep"].count("nrg-row") == 3
    assert any(view.sweep and view.sweep.count("<video") == 2 for view in seen)
    picked = studio.pick("me", "sweep", 1)
    assert picked.values is not None
    assert picked.values["weights"] == "0.5:0.5:0"
    assert "no longer there" in (studio.pick("me", "sweep", 6).status or "")
    run(studio.sweep("me", request(studio, seed=1), 2))
    assert len(files_of(studio, "me")) == 18  # those of the first sweep are gone


def test_candidates_are_ranked_by_score_and_one_gives_its_seed(studio: Studio) -> None:
    _, page = run(studio.best_of("me", request(studio, seed=10), 3))
    scores = [float(text.split("<")[0]) for text in page["best"].split("score ")[1:]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    picked = studio.pick("me", "best", 0)
    assert picked.values is not None
    assert f"seed {picked.values['seed']}" in page["best"].split("1. ")[1]
    assert {studio.pick("me", "best", place).values["seed"] for place in range(3)} == {10, 11, 12}  # type: ignore[index]


def test_cancel_starts_no_network_call_later_than_one_step_after_it(studio: Studio) -> None:
    run(studio.compare("me", request(studio)))
    moments = transformer_calls(studio)
    clicked = 0.0
    views = []
    for view in studio.compare("me", request(studio, steps=100)):
        views.append(view)
        if not clicked and view.status and "step 5 of 100" in view.status:
            studio.cancel("me")
            clicked = time.perf_counter()
    assert clicked
    assert sum(moment > clicked for moment in moments) <= 2
    assert "Cancelled" in (views[-1].status or "")
    assert views[-1].busy is False
    assert "Not finished" in (views[-1].guided or "")
    time.sleep(0.2)
    assert sum(moment > clicked for moment in moments) <= 2
    assert len(studio.visits.get("me").results) == 1
    _, page = run(studio.compare("me", request(studio)))
    assert "Done" in page["status"]


def test_closing_the_page_in_the_middle_stops_the_run_and_deletes_its_files(studio: Studio) -> None:
    run(studio.compare("me", request(studio)))
    folder = studio.visits.get("me").folder
    moments = transformer_calls(studio)
    views = studio.compare("me", request(studio, steps=100))
    next(view for view in views if view.status and "step 3 of 100" in view.status)
    studio.leave("me")
    views.close()  # type: ignore[attr-defined]
    time.sleep(0.5)
    calls = len(moments)
    time.sleep(0.3)
    assert len(moments) == calls < 100
    assert not folder.exists()


def test_a_second_visitor_waits_in_line_and_sees_the_place(studio: Studio) -> None:
    first = studio.compare("me", request(studio, steps=60))
    next(view for view in first if view.status and "step 2 of 60" in view.status)
    second = studio.compare("you", request(studio))
    next(second)
    assert "Waiting in line: you are next" in (next(second).status or "")
    third = studio.compare("you", request(studio))
    next(third)
    assert "2 are before you" in (next(third).status or "")
    studio.cancel("me")
    run(first)
    _, page = run(second)
    assert "Done" in page["status"]
    _, page = run(third)
    assert "Done" in page["status"]


def test_a_waiting_run_is_cancelled_at_once(studio: Studio) -> None:
    first = studio.compare("me", request(studio, steps=60))
    next(view for view in first if view.status and "step 2 of 60" in view.status)
    second = studio.compare("you", request(studio))
    next(second)
    assert "Waiting in line" in (next(second).status or "")
    studio.cancel("you")
    _, page = run(second)
    assert "Cancelled" in page["status"]
    assert any(view.status and "step" in view.status for view in first)  # the other one goes on
    studio.cancel("me")
    run(first)


def test_visits_do_not_see_each_other(studio: Studio) -> None:
    run(studio.compare("me", request(studio)))
    mine, yours = studio.visits.get("me"), studio.visits.get("you")
    assert len(mine.results) == 1
    assert yours.results == []
    assert mine.folder != yours.folder
    assert len(mine.folder.name) >= 32
    assert "no longer there" in (studio.restore("you", 0).status or "")


def test_idle_visits_are_forgotten_with_their_files(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    run(studio.compare("me", request(studio)))
    folder = studio.visits.get("me").folder
    studio.visits.get("me").seen -= 3 * 3600
    studio.visits.get("you")
    assert not folder.exists()
    assert len(studio.visits) == 1


BAD = {
    "empty prompt": ({"prompt": ""}, "Expected a prompt, but got an empty text"),
    "unknown words": ({"prompt": "a red unicorn dancing"}, "but got &#x27;unicorn&#x27;, &#x27;dancing&#x27;"),
    "all weights zero": ({"weights": "0:0:0"}, "Expected at least one reward weight above 0"),
    "too few weights": ({"weights": "1:1"}, "Expected 3 reward weights (VQ:MQ:TA), but got 2"),
    "seed": ({"seed": -5}, "Expected seed between 0 and 4294967295, but got -5."),
    "steps": ({"steps": 10**9}, "Expected steps between 1 and 100"),
    "another model": ({"model": "/etc"}, "Expected a model from"),
    "a model that does not load": ({"model": "./nowhere"}, "Expected a diffusers pipeline in &#x27;./nowhere&#x27;"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_a_bad_request_is_a_sentence_and_the_server_goes_on(
    changes: dict[str, Any], message: str, studio: Studio
) -> None:
    _, page = run(studio.compare("me", request(studio, **changes)))
    assert message in page["status"]
    assert page["busy"] is False
    assert [name for name in files_of(studio, "me") if "partial" in name] == []
    _, page = run(studio.compare("me", request(studio, steps=2)))
    assert "Done" in page["status"]


def test_a_full_disk_is_a_sentence_and_leaves_no_half_file(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(frames: Any, path: Path, fps: float) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(results, "write_mp4", full)
    _, page = run(studio.compare("me", request(studio)))
    assert "could not be written: No space left on device" in page["status"]
    assert "<video" not in page["unguided"]
    assert studio.visits.get("me").results == []
    assert [name for name in files_of(studio, "me") if name.endswith((".mp4", ".json")) or "partial" in name] == []


def test_whatever_a_model_does_the_server_goes_on(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from nrg_sampler.ui import sampling

    with monkeypatch.context() as broken:
        broken.setattr(sampling, "plan", lambda *_: {}["missing"])
        _, page = run(studio.compare("me", request(studio)))
    assert "The run failed (KeyError); the server&#x27;s log says where." in page["status"]
    assert "KeyError: 'missing'" in capfd.readouterr().err
    _, page = run(studio.compare("me", request(studio)))
    assert "Done" in page["status"]


def test_programs_get_files_and_manifests(studio: Studio) -> None:
    values = request(studio, seed=4)
    unguided, guided, both, manifest = api.compare(studio, "me", values)
    assert [path.name for path in (unguided, guided, both)] == ["unguided.mp4", "guided.mp4", "compare.mp4"]
    again, single = api.generate(studio, "me", values)
    assert again.is_file()
    assert single["clips"][0]["sha256"] == manifest["clips"][1]["sha256"]
    clips = api.sweep(studio, "me", values, 2)
    assert [manifest["guidance"]["weights"] for _, manifest in clips][:2] == [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]
    with pytest.raises(ValueError, match="Expected steps between 1 and 100"):
        api.generate(studio, "me", {**values, "steps": 0})


def test_the_plan_is_told_before_the_run_and_so_is_what_is_wrong(studio: Studio) -> None:
    run(studio.compare("me", request(studio)))
    text = studio.plan(request(studio, steps=10))
    assert "40 + " in text
    assert "about" in text
    assert "GB" in text
    assert "Expected at least one reward weight above 0" in studio.plan(request(studio, weights="0:0:0"))


def test_a_model_that_does_not_load_says_so_when_it_is_picked(studio: Studio) -> None:
    *_, (view, axes) = studio.open_model("me", "./nowhere")
    assert "Expected a diffusers pipeline" in (view.status or "")
    assert axes is None
    *_, (view, axes) = studio.open_model("me", next(iter(studio.engine.models)))
    assert "Ready" in (view.status or "")
    assert axes == ("VQ", "MQ", "TA")


def test_many_visitors_at_once_are_all_served(studio: Studio) -> None:
    hashes: list[str] = []

    def visit(seed: int) -> None:
        hashes.append(
            api.generate(studio, f"visitor {seed}", request(studio, seed=seed, steps=2))[1]["clips"][0]["sha256"]
        )

    threads = [threading.Thread(target=visit, args=(seed,)) for seed in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(hashes)) == 20
    for seed in range(20):
        studio.leave(f"visitor {seed}")


def test_a_manifest_on_disk_is_that_of_the_result(studio: Studio) -> None:
    run(studio.compare("me", request(studio)))
    (result,) = studio.visits.get("me").results
    assert Manifest.read(result.folder / "compare.json") == result.manifest
