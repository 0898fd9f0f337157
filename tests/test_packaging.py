"""What is in the project file holds for what is in the folder."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for path in (ROOT / "nrg_sampler").rglob("*.py"))


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_script_and_the_version_are_what_is_installed(project: dict[str, Any]) -> None:
    from importlib import metadata

    import nrg_sampler.cli

    assert project["project"]["scripts"] == {"nrg-sampler": "nrg_sampler.cli:main"}
    assert callable(nrg_sampler.cli.main)
    try:
        installed = metadata.version("nrg-sampler")
    except metadata.PackageNotFoundError:
        pytest.skip("the package is not installed")
    assert installed == project["project"]["version"]


def test_the_changelog_and_the_citation_know_the_version(project: dict[str, Any]) -> None:
    import yaml

    version = project["project"]["version"]
    assert f"\n## [{version}]\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == version


def test_the_licence_is_apache_in_full(project: dict[str, Any]) -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert project["project"]["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_package_is_typed() -> None:
    assert (ROOT / "nrg_sampler" / "py.typed").is_file()


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_module_says_what_it_is_for_and_postpones_annotations(module: Path) -> None:
    text = module.read_text(encoding="utf-8")
    if text:
        assert text.startswith(('"""', 'r"""'))
    if "import" in text.split('"""')[-1]:
        assert "from __future__ import annotations" in text


def test_nothing_imports_the_command_line() -> None:
    outside = [path for path in MODULES if "cli" not in path.relative_to(ROOT).parts and path.name != "__main__.py"]
    assert [path.name for path in outside if "nrg_sampler.cli" in path.read_text(encoding="utf-8")] == []


def test_the_wheel_holds_the_weights_and_the_marker(tmp_path: Path) -> None:
    """Ask the build backend itself which files it would pack."""
    builder = pytest.importorskip("hatchling.builders.wheel").WheelBuilder(str(ROOT))
    packed = {file.distribution_path for file in builder.recurse_included_files()}
    assert {"nrg_sampler/__init__.py", "nrg_sampler/cli/__init__.py", "nrg_sampler/py.typed"} <= packed
    weights = ROOT / "nrg_sampler" / "shapes" / "weights"
    expected = {path.relative_to(ROOT).as_posix() for path in weights.rglob("*") if path.is_file()}
    assert expected <= packed
    assert not [name for name in packed if name.startswith(("tests/", "examples/"))]


def test_the_bundled_weights_stay_small() -> None:
    weights = ROOT / "nrg_sampler" / "shapes" / "weights"
    assert sum(path.stat().st_size for path in weights.rglob("*") if path.is_file()) <= 32 * 2**20
