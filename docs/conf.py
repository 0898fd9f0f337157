"""The documentation: MyST pages and the API from the docstrings. Builds offline: ``sphinx-build -W -n docs OUT``."""

from __future__ import annotations

import tomllib
from pathlib import Path

project = "nrg-sampler"
author = "The nrg-sampler authors"
copyright = f"2026, {author}"
release = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "version"
]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
html_theme = "furo"
html_title = "nrg-sampler"

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False

# A docstring that Python inherits from a base class of another project is not this package's.
autodoc_inherit_docstrings = False

# Every reference into this package has to resolve. Types of Python and of other projects cannot: their inventories are
# on the network.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(collections\.abc|pathlib|os|random)\..*"),
    ("py:.*", r"(torch|numpy|diffusers|accelerate)\..*"),
    # Read as text rather than resolved: arguments after a default factory, and names imported for types alone.
    ("py:class", r"(tuple|dict|list)\[str"),
    ("py:class", r"Tensor|Accelerator"),
    # Aliases of types, which autodoc writes by name.
    ("py:class", r"Call|Judge|WeightsLike"),
]
