"""ComfyUI's interface as far as the nodes use it, and workflows as its server is sent them."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

PACKAGE = Path(__file__).parents[1] / "comfyui"
WORKFLOWS = sorted((PACKAGE / "example_workflows").glob("*.json"))


def as_prompt(workflow: Path) -> dict[str, Any]:
    """A saved graph as the page sends it to the server: each node's class and inputs."""
    graph = json.loads(workflow.read_text(encoding="utf-8"))
    sources = {link: [str(node), slot] for link, node, slot, *_ in graph["links"]}
    prompt = {}
    for node in graph["nodes"]:
        if node["type"] == "MarkdownNote":  # the page's own
            continue
        values = iter(node["widgets_values"])
        inputs: dict[str, Any] = {}
        for given in node["inputs"]:
            if "widget" in given:
                inputs[given["name"]] = next(values)
                if given["name"] == "seed":
                    next(values)  # what the page does with the seed after a run
            if given["link"] is not None:
                inputs[given["name"]] = sources[given["link"]]
        assert next(values, None) is None
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


class Declared:
    """What a declaration was made from."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs

    Input = Output = classmethod(lambda cls, *args, **kwargs: cls(*args, **kwargs))


def load_package(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import the package of nodes on a stand-in for ComfyUI."""
    kinds = ("Vae", "Model", "Conditioning", "String", "Float", "Combo", "Boolean", "Image")
    declarations = {name: type(name, (Declared,), {}) for name in kinds}
    io = types.SimpleNamespace(
        ComfyNode=object,
        Schema=Declared,
        NodeOutput=Declared,
        Custom=lambda name: type(name, (Declared,), {}),
        **declarations,
    )
    modules = {
        "comfy_api": {},
        "comfy_api.latest": {"io": io, "ui": types.SimpleNamespace(PreviewText=Declared), "ComfyExtension": object},
        "comfy": {},
        "comfy.model_management": {"get_torch_device": lambda: torch.device("cpu")},
    }
    for name, contents in modules.items():
        module = types.ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["comfy"].model_management = sys.modules["comfy.model_management"]  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location("nrg_nodes", PACKAGE / "__init__.py")
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "nrg_nodes", package)
    monkeypatch.delitem(sys.modules, "nrg_nodes.nodes", raising=False)
    spec.loader.exec_module(package)
    return package


class CONST:
    """Flow matching, by the name of ComfyUI's class."""


class LatentFormat:
    """Latents that the VAE has, normalised by channel for the model."""

    latent_channels, latent_dimensions = 4, 3

    def __init__(self) -> None:
        self.mean = torch.arange(4.0).view(1, 4, 1, 1, 1) / 10
        self.std = 1 + self.mean

    def process_in(self, latents: torch.Tensor) -> torch.Tensor:
        return (latents - self.mean) / self.std

    def process_out(self, latents: torch.Tensor) -> torch.Tensor:
        return latents * self.std + self.mean


class Model:
    """What of ComfyUI's ModelPatcher the nodes use, and an Euler sampler of a flow model around it."""

    load_device = torch.device("cpu")

    def __init__(self, sampling: Any = None) -> None:
        self.post_cfg: list[Any] = []
        self.wrappers: list[Any] = []
        self.objects = {"model_sampling": sampling or CONST(), "latent_format": LatentFormat()}

    def clone(self) -> Model:
        cloned = copy.copy(self)
        cloned.post_cfg, cloned.wrappers = list(self.post_cfg), list(self.wrappers)
        return cloned

    def get_model_object(self, name: str) -> Any:
        return self.objects[name]

    def set_model_sampler_post_cfg_function(self, function: Any) -> None:
        self.post_cfg.append(function)

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Any) -> None:
        assert (kind, key) == ("outer_sample", "nrg_sampler")
        self.wrappers.append(wrapper)

    def sample(self, latents: torch.Tensor, sigmas: list[float]) -> torch.Tensor:
        if self.wrappers:
            return self.wrappers[0](self._sample, latents, sigmas)
        return self._sample(latents, sigmas)

    def _sample(self, latents: torch.Tensor, sigmas: list[float]) -> torch.Tensor:
        options = {"transformer_options": {"sample_sigmas": torch.tensor(sigmas)}}
        for sigma, following in itertools.pairwise(sigmas):
            level = torch.full((len(latents),), sigma)
            clean = latents - sigma * torch.sin(latents)
            for function in self.post_cfg:
                clean = function({"input": latents, "denoised": clean, "sigma": level, "model_options": options})
            latents = latents + (following - sigma) * (latents - clean) / sigma
        return latents
