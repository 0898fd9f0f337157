"""The commands of README and docs parse, their Python compiles or runs, and what they point to is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
LINKED = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
WEIGHTS = ROOT / "nrg_sampler" / "shapes" / "weights"
needs_weights = pytest.mark.skipif(not (WEIGHTS / "pipeline").is_dir(), reason="the bundled model is not there")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(language: str, page: Path = README) -> list[str]:
    """The fenced blocks of a language; in a list they are indented."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", TEXTS[page], flags=re.DOTALL | re.MULTILINE)
    return ["\n".join(line.removeprefix(indent) for line in code.split("\n")) for indent, code in found]


def commands(start: str) -> list[Any]:
    """The commands that begin so, without the variables before them."""
    lines = [(page, line) for page in PAGES for block in blocks("bash", page) for line in block.splitlines()]
    plain = [(page, re.sub(r"^(\w+=\S+ )+", "", part)) for page, line in lines for part in line.split(" && ")]
    return [pytest.param(part, id=f"{name_of(page)}: {part[:60]}") for page, part in plain if part.startswith(start)]


PYTHON = [pytest.param(page, code, id=name_of(page)) for page in PAGES for code in blocks("python", page)]
TEN_LINES, ATTACH, OWN_REWARD = blocks("python")


def test_the_two_first_commands_set_up_and_run_and_set_up_and_test() -> None:
    run, test = blocks("bash")[:2]
    assert re.fullmatch(r'pip install -e \. && nrg-sampler compare ".+"\n', run)
    assert test == 'pip install -e ".[test]" && pytest\n'


def test_ci_runs_the_checks_and_the_test_command_to_the_letter() -> None:
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert run.endswith(blocks("bash")[1])
    assert "\n./check --no-tests\n" in run


def test_the_readme_is_short() -> None:
    assert len(TEXTS[README].splitlines()) <= 150
    assert len(README.read_bytes()) <= 10_240


@pytest.mark.parametrize("command", commands("nrg-sampler"))
def test_commands_parse(command: str) -> None:
    from nrg_sampler.cli import build_parser

    build_parser().parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("command", commands("python -m nrg_sampler"))
def test_modules_that_are_run_exist(command: str) -> None:
    module = ROOT / command.split()[2].replace(".", "/")
    assert (module / "__main__.py").is_file() or module.with_suffix(".py").is_file()


@pytest.mark.parametrize("command", commands("python examples/"))
def test_examples_that_are_run_exist(command: str) -> None:
    assert (ROOT / command.split()[1]).is_file()


@pytest.mark.parametrize(("page", "code"), PYTHON)
def test_python_compiles_and_fits_a_screen(page: Path, code: str) -> None:
    compile(code, name_of(page), "exec")
    assert len([line for line in code.splitlines() if line.strip()]) <= (15 if page == README else 40)
    assert max(map(len, code.splitlines())) <= 119


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, by the rule of GitHub."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_links_and_pictures_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    pictures = re.findall(r'<img src="([^"]+)"|^```\{image\} (.+)$', text, flags=re.MULTILINE)
    targets = [*re.findall(r"\]\(([^)]+)\)", text), *(source or path for source, path in pictures)]
    missing = []
    for target in targets:
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        if not place.is_file() or (anchor and anchor not in anchors(place)):
            missing.append(target)
    assert missing == []


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = {DOCS / "index.md"}
    for page in PAGES[1:]:
        for toc in re.findall(r"^```\{toctree\}\n(.*?)^```", TEXTS[page], flags=re.DOTALL | re.MULTILINE):
            listed |= {page.parent / f"{entry}.md" for entry in toc.split() if not entry.startswith(":")}
    assert listed == set(PAGES[1:])


def test_own_reward_is_a_reward_whose_gradient_fades_toward_noise() -> None:
    from nrg_sampler.rewards.base import check_reward
    from nrg_sampler.rewards.gradient import reward_gradient

    names: dict[str, Any] = {}
    exec(compile(OWN_REWARD, "README.md", "exec"), names)
    check_reward(names["reward"])
    latents = torch.randn(2, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    norms = [reward_gradient(latents, sigma, names["reward"])[0].norm().item() for sigma in (0.1, 0.5, 0.9)]
    assert norms == pytest.approx([norms[1] * factor for factor in (1.8, 1.0, 0.2)], rel=1e-4)


@pytest.mark.parametrize(("name", "setting"), [("pixel.md", "PixelReward"), ("own.md", "needs_prompts")])
def test_rewards_that_read_the_prompt_run(name: str, setting: str, wan: Any) -> None:
    from nrg_sampler import attach
    from nrg_sampler.rewards import PixelReward

    def pipe(prompt: Any) -> Any:
        return wan(prompt, height=16, width=16, num_frames=3, num_inference_steps=3, max_sequence_length=8)

    pipe.vae = wan.vae  # type: ignore[attr-defined]
    code = blocks("python", DOCS / "rewards" / name)[-1]
    assert setting in code

    def attached(_: Any, *args: Any, **settings: Any) -> Any:
        return attach(wan, *args, **settings)

    names: dict[str, Any] = {"attach": attached, "pipe": pipe, "PixelReward": PixelReward}
    exec(compile(code, name, "exec"), names)
    assert len(names["videos"]) == (2 if name == "pixel.md" else 1)


@needs_weights
def test_ten_lines_of_python_run(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(TEN_LINES, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("(13, 64, 64, 3)")
