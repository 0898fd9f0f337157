"""The documentation: MyST pages and the API from the docstrings. Builds offline: ``sphinx-build -W -n docs OUT``."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

project = "nrg-sampler"
author = "The nrg-sampler authors"
copyright = f"2026, {author}"
release = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
html_theme = "furo"
html_title = "nrg-sampler"
html_static_path = ["_static"]
html_css_files = ["tables.css"]

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Reference", "References")]

# A docstring that Python inherits from a base class of another project is not this package's.
autodoc_inherit_docstrings = False

# Every reference into this package has to resolve. Types of Python and of other projects cannot: their inventories are
# on the network.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(abc|collections\.abc|inspect|pathlib|os|random)\..*"),
    ("py:.*", r"(torch|numpy|diffusers|accelerate)\..*"),
    # Read as text rather than resolved: arguments after a default factory, and names imported for types alone.
    ("py:class", r"(tuple|dict|list)\[(str|int|float)"),
    ("py:class", r"Tensor|Accelerator"),
    # Type variables.
    ("py:(class|obj)", r".*\.(T|Result|Parsed)"),
    # Aliases of types, which autodoc writes by name.
    ("py:class", r"Call|ClipScore|FrameScorer|Grader|WeightsLike"),
]


def setup(app: Any) -> None:
    """Write the sections of an API page from the package that it is about."""
    app.connect("source-read", _with_modules)


def _with_modules(app: Any, docname: str, source: list[str]) -> None:
    source[0] = re.sub(r"^<!-- modules of (\S+) -->$", _sections, source[0], flags=re.MULTILINE)


def _sections(package: re.Match[str]) -> str:
    folder = ROOT.joinpath(*package[1].split("."))
    modules = sorted(file.stem for file in folder.glob("[!_]*.py"))
    return "\n".join(f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {package[1]}.{name}\n```\n" for name in modules)
