"""Who may import whom: imports run one way, from what uses to what is used, wherever in a module they stand."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "nrg_sampler"

# From the bottom up; a layer may import any that stands before it.
LAYERS = (
    "flow",  # the convention and its algebra
    "files",
    "locks",
    "json_text",
    "entries",
    "statistics",
    "schedulers",
    "video",
    "checkpoints",
    "rewards",  # what guides
    "guidance",  # the method
    "hosts",  # where it plugs in
    "shapes",  # the bundled world: scenes, renderer, oracle, judge
    "judges",  # who grades
    "search",
    "lookahead",
    "cost",
    "runs",
    "training",
    "evaluation",
    "shapes.train",  # how the bundled models are made
    "ui",
    "cli",
)
FACES = ("__init__", "__main__")  # of the package: the public names and the command


MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.relative_to(PACKAGE).stem not in FACES or path.parent != PACKAGE
}
MODULE_NAMES = {f"nrg_sampler.{module}" for module in MODULES}


def layer(module: str) -> str:
    """The layer of a module by its dotted name within the package."""
    parts = module.split(".")
    return "shapes.train" if parts[:2] == ["shapes", "train"] else parts[0]


def imports(source: str) -> Iterator[str]:
    """The modules of the package that a source imports, at its top, for its types or late in a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "write imports of the package with its name"
            module = node.module or ""
            modules = [name for name in (f"{module}.{alias.name}" for alias in node.names) if name in MODULE_NAMES]
            names = modules or (
                [f"{module}.{alias.name}" for alias in node.names] if module == "nrg_sampler" else [module]
            )
        else:
            continue
        yield from (name.removeprefix("nrg_sampler.") for name in names if name.split(".")[0] == "nrg_sampler")


def breaches(module: str, source: str) -> list[str]:
    """Imports of a module that its layer may not have."""
    own = LAYERS.index(layer(module))
    return [name for name in imports(source) if layer(name) not in LAYERS or LAYERS.index(layer(name)) > own]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_its_own_layer_and_those_below(module: str) -> None:
    assert breaches(module, MODULES[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "from nrg_sampler.hosts.attach import attach",
        "import nrg_sampler.cli.parser",
        "from nrg_sampler import NRGFlowPipeline",
        "def late():\n    from nrg_sampler.evaluation.arms import Arm",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from nrg_sampler.runs.sampler import Sampler",
    ],
)
def test_the_check_above_can_fail(line: str) -> None:
    assert len(breaches("guidance.step", f"{line}\nfrom nrg_sampler.rewards.base import Reward\nimport torch")) == 1


def test_every_layer_is_there_and_nothing_else() -> None:
    assert {layer(module) for module in MODULES} == set(LAYERS)


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {
        module: {name for name in imports(path.read_text(encoding="utf-8")) if name in MODULES}
        for module, path in MODULES.items()
    }
    done: set[str] = set()
    while free := {module for module in graph.keys() - done if graph[module] - {module} <= done}:
        done |= free
    assert sorted(graph.keys() - done) == []
