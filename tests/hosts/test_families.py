"""Every family of the table, each on a tiny pipeline of its real classes: the same three checks."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import TINY
from tiny_families.base import Tiny, pipeline
from tiny_families.wan import wan_transformer

from nrg_sampler import GuidanceWarning, RewardGuidance, attach
from nrg_sampler.flow import PURE_NOISE
from nrg_sampler.hosts.conventions import path_of
from nrg_sampler.hosts.families import FAMILIES, REFUSED, UNKNOWN, family_of

pytestmark = [
    # of diffusers and numpy, about themselves
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),
    pytest.mark.filterwarnings("ignore:std\\(\\). degrees of freedom:UserWarning"),
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
]

UNBOUNDED = RewardGuidance.preset("best", max_coefficient=None, max_push=None, damping=0.0)


class Pattern:
    """Minus half the squared distance to a pattern, another number in every place, so that a wrong order shows."""

    axes = ("closeness",)

    def __call__(self, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Any) -> torch.Tensor:
        assert latents.ndim == 5
        alpha = (1 - sigma).reshape(-1, 1, 1, 1, 1)
        target = torch.linspace(-2, 2, latents[0].numel()).reshape(latents[0].shape).to(latents)
        return -((latents - alpha * target) ** 2 * alpha).sum(dim=(1, 2, 3, 4))[:, None] / 2


class Steps:
    """What pipeline and scheduler said to each other: latents, outputs of the model, the guided ones and results."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.latents: list[torch.Tensor] = []
        self.outputs: list[torch.Tensor] = []
        self.guided: list[torch.Tensor] = []
        self.results: list[torch.Tensor] = []
        self.seen: list[dict[str, Any]] = []
        self.levels: list[float] = []

    def __enter__(self) -> Steps:
        kind = self.kind = type(self.pipe.scheduler)
        self.original = kind.step
        self.hook = self.pipe.transformer.register_forward_pre_hook(self._see, with_kwargs=True)
        recorder = self

        def step(scheduler: Any, model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
            result = recorder.original(scheduler, model_output, timestep, sample, *args, **kwargs)
            if scheduler is recorder.pipe.scheduler:
                recorder.guided.append(model_output)
                recorder.results.append(result[0])
            return result

        kind.step = step
        return self

    def watch(self) -> None:
        """Also see what the pipeline hands over, once guidance is attached."""
        attached = self.pipe.scheduler.step

        def step(scheduler: Any, model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
            if scheduler is not self.pipe.scheduler:  # that of the sound
                return self.original(scheduler, model_output, timestep, sample, *args, **kwargs)
            self.latents.append(sample.clone())
            self.outputs.append(model_output)
            result = attached(model_output, timestep, sample, *args, **kwargs)
            self.levels.append(float(self.pipe.scheduler.sigmas[self.pipe.scheduler.step_index - 1]))
            return result

        self.pipe.scheduler.step = types.MethodType(step, self.pipe.scheduler)

    def _see(self, module: Any, args: Any, kwargs: Any) -> None:
        self.seen.append({**dict(zip(("hidden_states",), args, strict=False)), **kwargs})

    def __exit__(self, *error: Any) -> None:
        self.kind.step = self.original
        self.hook.remove()


@pytest.fixture(scope="module")
def built() -> Iterator[dict[str, Tiny]]:
    return {}


@pytest.fixture(params=TINY)
def tiny(request: pytest.FixtureRequest, built: dict[str, Tiny]) -> Tiny:
    if request.param not in built:
        built.clear()
        built[request.param] = TINY[request.param]()
    return built[request.param]


class Listening(Pattern):
    """Keeps the prompt that it was last asked with."""

    prompt: torch.Tensor | None = None

    def __call__(self, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Any) -> torch.Tensor:
        self.prompt = conditioning.prompt_embeds
        return super().__call__(latents, sigma, conditioning)


def heard(tiny: Tiny, **changes: Any) -> torch.Tensor:
    reward = Listening()
    with attach(tiny.pipe, reward):
        tiny.sample(**changes)
    assert reward.prompt is not None
    return reward.prompt


def moved(tiny: Tiny, negative: bool) -> dict[str, Any]:
    """The embeddings of the positive or the negative prompt, each a little different."""
    names = [name for name in tiny.arguments if "embeds" in name and "mask" not in name]
    chosen = {name: tiny.arguments[name] for name in names if name.startswith("negative") == negative}
    return {
        name: [part + 1 for part in value] if isinstance(value, list) else value + 1 for name, value in chosen.items()
    }


def test_the_reward_reads_the_positive_prompt_alone(tiny: Tiny) -> None:
    usual = heard(tiny)
    assert torch.equal(heard(tiny, **moved(tiny, negative=True)), usual)
    other = heard(tiny, **moved(tiny, negative=False))
    assert other.shape == usual.shape
    assert not torch.equal(other, usual)


def final(tiny: Tiny, scale: float) -> tuple[torch.Tensor, dict[str, Any]]:
    with Steps(tiny.pipe) as steps, attach(tiny.pipe, Pattern(), UNBOUNDED, scale=scale):
        tiny.sample()
    return steps.results[-1], steps.seen[0]


def test_scale_zero_and_a_pipeline_that_was_left_are_bit_identical(tiny: Tiny) -> None:
    unguided = tiny.sample()
    with attach(tiny.pipe, Pattern(), scale=0):
        assert torch.equal(tiny.sample(), unguided)
    with attach(tiny.pipe, Pattern(), UNBOUNDED, scale=0.2):
        assert not torch.equal(tiny.sample(), unguided)
    assert torch.equal(tiny.sample(), unguided)


def test_a_quadratic_reward_rises_with_the_scale(tiny: Tiny) -> None:
    rewards = []
    for scale in (0.0, 0.2, 0.4):
        latents, seen = final(tiny, scale)
        video = tiny.unpack(latents, seen, 0.0)
        rewards.append(float(Pattern()(video, torch.zeros(len(video)), None)))
    assert rewards == sorted(rewards)
    assert rewards[-1] > rewards[0] + 0.01 * abs(rewards[0])


def test_the_push_is_the_finite_difference_of_the_reward_in_the_family_s_own_layout(tiny: Tiny) -> None:
    with Steps(tiny.pipe) as steps, attach(tiny.pipe, Pattern(), UNBOUNDED, scale=0.3):
        steps.watch()
        tiny.sample()
    path = path_of(tiny.pipe.scheduler, family_of(type(tiny.pipe)).exploding)
    is_noise = path.sigma(steps.levels[0]) > PURE_NOISE
    assert torch.equal(steps.guided[0], steps.outputs[0]) == is_noise  # pure noise is left alone
    latents, output, guided, level = (each[1] for each in (steps.latents, steps.outputs, steps.guided, steps.levels))
    sigma = path.sigma(level)
    calls = len(steps.seen) // len(steps.latents)
    seen = steps.seen[calls]

    def reward(latents: torch.Tensor) -> float:
        video = tiny.unpack(latents, seen, sigma)
        return float(Pattern()(video, torch.full((1,), sigma, dtype=torch.float64), None))

    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        direction = torch.randn(latents.shape, generator=generator, dtype=torch.float64)
        change = (reward(latents.double() + direction) - reward(latents.double() - direction)) / 2
        expected = 0.3 * sigma / (1 - sigma) * change
        tokenwise = "LTXCondition" in type(tiny.pipe).__name__
        sign = -1 if tokenwise or tiny.pipe.scheduler.config.get("invert_sigmas") else 1
        push = sign * float(((output.double() - guided.double()) * direction).sum())
        assert push == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_every_family_is_tested() -> None:
    classes = [name for family in FAMILIES for name in family.pipelines if "Modular" not in name]
    assert set(classes) <= {blueprint.pipeline for blueprint in TINY.values()}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_pipeline_says_why_in_one_sentence(name: str) -> None:
    import diffusers

    with pytest.raises(ValueError, match="Expected a pipeline of a rectified flow") as caught:
        family_of(getattr(diffusers, name))
    sentence = str(caught.value)
    assert sentence.startswith(
        f"Expected a pipeline of a rectified flow, but {name} cannot be guided: {REFUSED[name]};"
    )
    assert sentence.endswith("lists those that can.")
    assert "\n" not in sentence


def test_a_subclass_belongs_to_the_nearest_family() -> None:
    from diffusers import SkyReelsV2DiffusionForcingPipeline, WanPipeline

    class Mine(WanPipeline):
        pass

    class AlsoMine(SkyReelsV2DiffusionForcingPipeline):
        pass

    assert family_of(Mine).name.startswith("Wan")
    with pytest.raises(ValueError, match="every frame with a scheduler"):
        family_of(AlsoMine)


def test_an_unknown_pipeline_with_a_flow_scheduler_works_with_a_warning() -> None:
    tiny = unknown(TINY["Wan"]())
    unguided = tiny.sample()
    message = "Home is not among the pipelines this was tested with; guiding it as"
    with pytest.warns(GuidanceWarning, match=message), attach(tiny.pipe, Pattern(), scale=0.3):
        guided = tiny.sample()
    assert not torch.equal(guided, unguided)


def test_an_unknown_image_pipeline_works_too() -> None:
    tiny = unknown(TINY["Stable Diffusion 3"]())
    with (
        pytest.warns(GuidanceWarning, match="Home is not among"),
        attach(tiny.pipe, Pattern(), scale=0.3) as trace,
    ):
        tiny.sample()
    assert trace.summary()["guided"] == 2


def test_an_unknown_pipeline_with_packed_latents_is_refused() -> None:
    tiny = unknown(TINY["FLUX.1"]())
    message = r"latents of shape \(B, C, T, H, W\) at the"
    with pytest.warns(GuidanceWarning), pytest.raises(ValueError, match=message), attach(tiny.pipe, Pattern()):
        tiny.sample()


def unknown(tiny: Tiny) -> Tiny:
    """Turn a pipeline into one of a class that nobody has heard of."""
    base = type(tiny.pipe)
    others = {name: member for name, member in vars(base).items() if name not in ("__dict__", "__weakref__")}
    tiny.pipe.__class__ = type("Home", base.__bases__, others)
    assert family_of(type(tiny.pipe)) is UNKNOWN
    return tiny


def test_latents_of_another_layout_than_the_family_s_are_refused() -> None:
    pipe = pipeline("WanPipeline", transformer=wan_transformer())
    pipe.scheduler.set_timesteps(4)
    packed = torch.zeros(1, 8, 16)
    message = r"Expected latents of shape \(B, C, T, H, W\) at the scheduler, but got"
    with pytest.raises(ValueError, match=message), attach(pipe, Pattern()):
        pipe.scheduler.step(packed, pipe.scheduler.timesteps[0], packed)


def test_the_command_lists_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    from nrg_sampler.cli import main

    assert main(["families", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in table["supported"]] == [family.name for family in FAMILIES]
    assert {row["name"]: row["reason"] for row in table["refused"]} == REFUSED
    assert main(["families"]) == 0
    plain = capsys.readouterr().out
    assert "WanVACEPipeline" in plain
    assert "CogVideoXPipeline: it is not a rectified flow" in plain
    assert main(["families", "--markdown"]) == 0
    tables = capsys.readouterr().out
    assert tables.startswith("| family | pipelines |")
    assert "`FluxPipeline`" in tables
    assert "| refused | because |" in tables


BEGIN, END = "<!-- families: begin -->\n", "<!-- families: end -->"
PAGE = Path(__file__).parents[2] / "docs" / "guides" / "pipelines.md"


def test_the_docs_have_the_tables_of_the_command() -> None:
    from nrg_sampler.cli.families import markdown

    assert PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip() == markdown()


def test_the_readme_counts_the_families() -> None:
    readme = PAGE.parents[2] / "README.md"
    assert f"[{len(FAMILIES)} families of diffusers pipelines]" in readme.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["LTX image-to-video", "Wan 2.2 5B image-to-video"])
def test_a_reward_that_needs_the_velocity_gets_one_that_keeps_a_given_frame(name: str) -> None:
    seen = []

    class NeedsVelocity(Pattern):
        needs_velocity = True

        def __call__(self, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Any) -> torch.Tensor:
            seen.append((latents.detach(), conditioning.velocity))
            return super().__call__(latents, sigma, conditioning)

    tiny = TINY[name]()
    with attach(tiny.pipe, NeedsVelocity()):
        tiny.sample()
    for latents, velocity in seen:
        assert velocity.shape == latents.shape
        assert velocity[:, :, 1:].any()
        assert not velocity[:, :, :1].any()
    torch.testing.assert_close(seen[0][0][:, :, 0], seen[1][0][:, :, 0])  # the frame is the same at every step
