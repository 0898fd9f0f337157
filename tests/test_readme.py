"""The README's commands parse, its Python runs, and what it points to is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
WEIGHTS = ROOT / "nrg_sampler" / "shapes" / "weights"
needs_weights = pytest.mark.skipif(not (WEIGHTS / "pipeline").is_dir(), reason="the bundled model is not there")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


TITLES = ("ten lines", "attach", "scheduler and guider", "own reward", "pixel reward", "client")
PYTHON = dict(zip(TITLES, blocks("python"), strict=True))
COMMANDS = [part for line in "\n".join(blocks("bash")).splitlines() for part in line.split(" && ")]
WITHOUT_VARIABLES = [re.sub(r"^(\w+=\S+ )+", "", command) for command in COMMANDS]


def test_the_two_first_commands_set_up_and_run_and_set_up_and_test() -> None:
    run, test = blocks("bash")[:2]
    assert re.fullmatch(r'pip install -e \. && nrg-sampler compare ".+"\n', run)
    assert test == 'pip install -e ".[test]" && pytest\n'


def test_ci_runs_the_test_command_to_the_letter() -> None:
    assert blocks("bash")[1] in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", [command for command in WITHOUT_VARIABLES if command.startswith("nrg-sampler")])
def test_commands_parse(command: str) -> None:
    from nrg_sampler.cli import build_parser

    build_parser().parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("python -m")])
def test_modules_that_are_run_exist(command: str) -> None:
    module = ROOT / command.split()[2].replace(".", "/")
    assert (module / "__main__.py").is_file() or module.with_suffix(".py").is_file()


@pytest.mark.parametrize("code", PYTHON.values(), ids=PYTHON)
def test_python_compiles_and_fits_a_screen(code: str) -> None:
    compile(code, "README.md", "exec")
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    assert max(map(len, code.splitlines())) <= 119


def test_links_and_pictures_are_there() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    local = [target for target in targets if not target.startswith("http")]
    missing = [target for target in local if not (ROOT / target).is_file()]
    assert missing == []


def test_own_reward_is_a_reward_whose_gradient_fades_toward_noise() -> None:
    from nrg_sampler.rewards.base import check_reward
    from nrg_sampler.rewards.gradient import reward_gradient

    names: dict[str, Any] = {}
    exec(compile(PYTHON["own reward"], "README.md", "exec"), names)
    check_reward(names["reward"])
    latents = torch.randn(2, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    norms = [reward_gradient(latents, sigma, names["reward"])[0].norm().item() for sigma in (0.1, 0.5, 0.9)]
    assert norms == pytest.approx([norms[1] * factor for factor in (1.8, 1.0, 0.2)], rel=1e-4)


@needs_weights
def test_ten_lines_of_python_run(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(PYTHON["ten lines"], "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("(13, 64, 64, 3)")
