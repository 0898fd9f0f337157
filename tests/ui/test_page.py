"""The served page on a tiny model: its endpoints through ``gradio_client``, what it exposes, how it bears a crowd."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from tiny_ui import request, save_model

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_HEARTBEAT_INTERVAL"] = "1"  # second, so that the server soon sees who has gone
gradio_client = pytest.importorskip("gradio_client", reason='needs pip install "nrg-sampler[app]"')

# Gradio trails the deprecations of its own dependencies.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def served(components: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page's server: its address, engine, folder of outputs and model."""
    from types import SimpleNamespace

    from nrg_sampler.ui.engine import Engine
    from nrg_sampler.ui.handlers import Studio
    from nrg_sampler.ui.server import build, launch
    from nrg_sampler.ui.visits import Visits

    model = save_model(components, tmp_path_factory.mktemp("models"))
    root = tmp_path_factory.mktemp("outputs").resolve()
    engine = Engine((model,), device="cpu")
    blocks = build(engine, root)
    _, url, _ = launch(blocks, root, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    # A second studio on the same engine stands for a visitor's page.
    page = Studio(engine, Visits(tmp_path_factory.mktemp("page"), engine))
    yield SimpleNamespace(url=url, engine=engine, root=root, model=model, page=page)
    blocks.close(verbose=False)


@pytest.fixture
def client(served: Any) -> Iterator[Any]:
    client = gradio_client.Client(served.url, verbose=False, httpx_kwargs={"timeout": 120})
    yield client
    client.close()


def fetch(url: str, data: bytes | None = None, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def arguments_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that ask an endpoint for what a manifest describes."""
    guidance = dict(manifest["guidance"])
    weights = ":".join(str(weight) for weight in guidance.pop("weights"))
    return {
        "prompt": manifest["prompt"],
        "weights": weights,
        "strength": guidance.pop("scale"),
        "steps": manifest["sampling"]["num_inference_steps"],
        "cfg": manifest["sampling"]["guidance_scale"],
        "seed": manifest["seed"],
        "settings": {**guidance, "scheduler": manifest["scheduler"]},
    }


def test_programs_see_three_typed_endpoints_and_nothing_else(client: Any) -> None:
    about = client.view_api(return_format="dict", print_info=False)
    assert about["named_endpoints"].keys() == {"/generate", "/compare", "/sweep"}
    assert about["unnamed_endpoints"] == {}
    parameters = {item["parameter_name"]: item for item in about["named_endpoints"]["/compare"]["parameters"]}
    types = {name: item["python_type"]["type"] for name, item in parameters.items()}
    assert types["prompt"] == types["weights"] == "str"
    assert types["steps"] == types["seed"] == "int"
    assert types["strength"] == types["cfg"] == "float"
    assert [name for name, item in parameters.items() if not item["parameter_has_default"]] == ["prompt"]


def test_a_program_reproduces_a_page_run_bit_for_bit_from_its_manifest(served: Any, client: Any) -> None:
    changes = {"weights": "1:0.5:0", "seed": 9, "strength": 2.0, "max_push": None, "scheduler": "unipc", "start": 0.25}
    for _ in served.page.compare("page", request(served.page, **changes)):
        pass
    (result,) = served.page.visits.get("page").results
    manifest = json.loads((result.folder / "compare.json").read_text())
    unguided, guided, both, again = client.predict(**arguments_of(manifest), api_name="/compare")
    assert [clip["sha256"] for clip in again["clips"]] == [clip["sha256"] for clip in manifest["clips"]]
    assert len({clip["sha256"] for clip in again["clips"]}) == 2
    for path, name in ((unguided, "unguided"), (guided, "guided"), (both, "compare")):
        assert Path(path).read_bytes() == (result.folder / f"{name}.mp4").read_bytes()


def test_generate_and_sweep_answer_too(client: Any) -> None:
    video, manifest = client.predict("a red circle", "0:0:1", 1.0, 3, api_name="/generate")
    assert Path(video).stat().st_size > 0
    assert manifest["guidance"]["weights"] == [0.0, 0.0, 1.0]
    videos, manifests = client.predict("a red circle", strength=100, steps=4, api_name="/sweep")
    assert len(videos) == len(manifests) == 6
    assert len({manifest["clips"][0]["sha256"] for manifest in manifests}) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 10**9}, "Expected steps between 1 and 100, but got 1000000000."),
        ({"seed": -1}, "Expected seed between 0 and 4294967295, but got -1."),
        ({"prompt": "a red unicorn"}, "but got 'unicorn'"),
        ({"model": "/etc"}, "Expected a model from"),
        ({"settings": {"scheduler": "../../x"}}, "Expected a scheduler from"),
        ({"settings": []}, "Expected `settings` as an object of names and values, but got []"),
        ({"settings": "x"}, "Expected `settings` as an object of names and values, but got 'x'"),
    ],
    ids=["steps", "seed", "word", "model", "scheduler", "a list", "a text"],
)
def test_a_bad_request_is_answered_with_its_sentence(changes: dict[str, Any], message: str, client: Any) -> None:
    with pytest.raises(gradio_client.exceptions.AppError) as error:
        client.predict(**{"prompt": "a red circle", "steps": 2, **changes}, api_name="/compare")
    assert message in str(error.value)


def test_only_outputs_can_be_read_and_nothing_uploaded(served: Any, client: Any) -> None:
    client.predict("a red circle", steps=2, api_name="/generate")
    output = max(served.root.rglob("clip-0.mp4"), key=lambda path: path.stat().st_mtime_ns)
    route = f"{served.url}gradio_api/file="
    assert fetch(route + quote(str(output))) == 200
    outside = [
        Path("/etc/passwd"),
        Path(served.model.source) / "model_index.json",
        output.parent / "../../../../secret",
    ]
    assert [fetch(route + quote(str(path))) for path in outside] == [403] * 3
    assert fetch(route + quote(str(served.root))) in (403, 404)  # no listing
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.py"\r\n\r\nprint(1)\r\n--x--\r\n'
    header = {"Content-Type": "multipart/form-data; boundary=x"}
    for content in (b"print(1)", b"1", b""):
        assert fetch(f"{served.url}gradio_api/upload", body.replace(b"print(1)", content), **header) == 413


def test_what_a_program_leaves_is_deleted_when_it_goes(served: Any) -> None:
    client = gradio_client.Client(served.url, verbose=False, httpx_kwargs={"timeout": 120})
    before = set(served.root.iterdir())
    client.predict("a red circle", steps=2, api_name="/generate")
    (folder,) = set(served.root.iterdir()) - before
    client.close()
    deadline = time.monotonic() + 90
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not folder.exists()


def test_twenty_clients_at_once_are_all_served(served: Any) -> None:
    def visit(seed: int) -> str:
        client = gradio_client.Client(served.url, verbose=False, httpx_kwargs={"timeout": 120})
        _, manifest = client.predict("a red circle", steps=2, seed=seed, api_name="/generate")
        client.close()
        assert manifest["seed"] == seed
        return str(manifest["clips"][0]["sha256"])

    with ThreadPoolExecutor(20) as crowd:
        assert len(set(crowd.map(visit, range(20)))) == 20


@pytest.mark.slow
def test_memory_stays_flat_over_fifty_runs(served: Any, client: Any) -> None:
    import gc

    import psutil

    def megabytes_after(runs: int) -> float:
        for seed in range(runs):
            client.predict("a red circle", steps=4, seed=seed, api_name="/compare")
        gc.collect()
        return psutil.Process().memory_info().rss / 2**20

    warm = megabytes_after(20)
    later = megabytes_after(50)
    print(f"{warm:.1f} MB after 20 runs, {later:.1f} MB after 50 more")
    assert later - warm < 20
