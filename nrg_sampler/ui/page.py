"""The page itself: components and wires. What they do is in ``handlers``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.schedulers import SCHEDULERS
from nrg_sampler.ui.controls import GROUPED, TEXT_LENGTH, Choice, Control, Switch, Text
from nrg_sampler.ui.handlers import PARTS, Studio, View, blank
from nrg_sampler.ui.jobs import CANDIDATES, FINENESS
from nrg_sampler.ui.marks import PULL
from nrg_sampler.ui.presets import (
    AUTO,
    AXIS_NAMES,
    CUSTOM,
    EXAMPLES,
    GUIDANCE_PRESETS,
    PRESET_SETTINGS,
    PRESETS,
    guidance_preset_of,
    preset_of,
)
from nrg_sampler.ui.settings import OWN_SCHEDULER, PROMPT_LENGTH
from nrg_sampler.ui.widgets import AT_ONCE, PRIVATE, RUNS, TELL_INDEX, note, or_skip, slider, told, visit_name

HTML_PARTS = tuple(part for part in PARTS if part not in ("snippet", "busy", "values"))
HERE = Path(__file__).parent
MOST_AXES = 6  # with a slider each


class Page:
    """Components of the page, and which handler listens to which.

    Args:
        studio: Does the work.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.parts: dict[str, Any] = {}
        self.controls: dict[str, Any] = {}
        self.weights: list[Any] = []

    def build(self) -> None:
        """Add everything to the ``gr.Blocks`` that is open."""
        gr.HTML(
            '<header class="nrg-head"><h1>nrg-sampler</h1>'
            "<p>The same seed twice: without and with the reward.</p></header>"
        )
        with gr.Row(elem_id="nrg-columns"):
            with gr.Column(scale=4, min_width=320):
                self._request()
            with gr.Column(scale=7, min_width=320):
                self._results()
        self._wire_runs()
        self._wire_picks()
        self._wire_settings()

    def _request(self) -> None:
        prompt = gr.Textbox(
            EXAMPLES[0], label="Prompt", lines=2, max_lines=4, max_length=PROMPT_LENGTH, elem_id="nrg-prompt"
        )
        gr.Examples([[text] for text in EXAMPLES], prompt, label="Try", api_visibility="private")
        with gr.Row():
            self.go = gr.Button("Sample both", variant="primary", scale=3, min_width=120, elem_id="nrg-go")
            self.stop = gr.Button("Cancel", scale=1, min_width=90, interactive=False, elem_id="nrg-cancel")
        self.plan = gr.HTML("", elem_id="nrg-plan")
        self.preset = gr.Dropdown(
            [*PRESETS, AUTO, CUSTOM], value=next(iter(PRESETS)), label="Preset", elem_id="nrg-preset"
        )
        for index in range(MOST_AXES):
            axis = dict(enumerate(AXIS_NAMES)).get(index)  # those of another reward are shown once it is loaded
            about = _named(axis) if axis else {"label": f"axis {index + 1}", "visible": False}
            self.weights.append(slider(0, 3, 1, 0.05, elem_id=f"nrg-weight-{index}", **about))
        self.controls["prompt"] = prompt
        self.controls["strength"] = slider(
            0, 5, 1, 0.1, label="Strength", info="1 is what the reward recommends.", elem_id="nrg-strength"
        )
        self.guidance_preset = gr.Dropdown(
            [*GUIDANCE_PRESETS, CUSTOM],
            value=guidance_preset_of(vars(RewardGuidance())),
            label="Guidance preset",
            info="When the reward is evaluated; its direction is reused in between.",
            elem_id="nrg-guidance-preset",
        )
        with gr.Row():
            self.controls["steps"] = slider(5, 60, 25, 1, label="Steps", min_width=140, elem_id="nrg-steps")
            self.controls["cfg"] = slider(1, 10, 4, 0.5, label="CFG", min_width=140, elem_id="nrg-cfg")
        with gr.Row(elem_id="nrg-seed-row"):
            self.controls["seed"] = gr.Number(0, label="Seed", precision=0, min_width=120, elem_id="nrg-seed")
            self.dice = gr.Button("New seed", size="md", min_width=110, scale=0, elem_id="nrg-dice")
            self.lock = gr.Checkbox(True, label="Keep", min_width=90, scale=0, container=False, elem_id="nrg-lock")
        with gr.Accordion("More settings", open=False, elem_id="nrg-more"):
            self._more()

    def _more(self) -> None:
        for title, pairs in GROUPED.items():
            note(title)
            for pair in (pairs[index : index + 2] for index in range(0, len(pairs), 2)):
                with gr.Row(equal_height=True):
                    for name, control in pair:
                        self.controls[name] = _component(name, control)
        models = list(self.studio.engine.models)
        with gr.Row():
            self.controls["scheduler"] = gr.Dropdown(
                [OWN_SCHEDULER, *SCHEDULERS], value=OWN_SCHEDULER, label="Scheduler", min_width=140
            )
            self.controls["model"] = gr.Dropdown(models, value=models[0], label="Model", min_width=140)

    def _results(self) -> None:
        self._html("status")
        with gr.Tabs(elem_id="nrg-tabs") as self.tabs:
            with gr.Tab("Compare", id="compare"):
                with gr.Row(elem_id="nrg-stage"):
                    for part in ("unguided", "guided", "difference"):
                        self._html(part, min_width=120)
                gr.HTML((HERE / "player.html").read_text(encoding="utf-8"))
                self._html("verdict")
                self._html("curves")
                self._html("files")
                with gr.Accordion("Python that makes it again", open=False):
                    self.parts["snippet"] = gr.Code(
                        "", language="python", show_label=False, interactive=False, lines=16
                    )
            with gr.Tab("Sweep", id="sweep"):
                note(
                    "One seed, with weights from all over the triangle: under each clip its weights VQ:MQ:TA and how "
                    "it is judged. Click one to take its weights."
                )
                with gr.Row(elem_classes="nrg-bar"):
                    self.fineness = gr.Radio(
                        list(FINENESS), value=next(iter(FINENESS)), label="Triangle", min_width=220
                    )
                    self.sweep = gr.Button("Sweep", variant="primary", scale=0, min_width=140, elem_id="nrg-sweep-go")
                self._html("sweep", js_on_load=TELL_INDEX)
            with gr.Tab("Best of n", id="best"):
                note(
                    "Guided clips of consecutive seeds, ranked by the reward's weighted score. Click one for its "
                    "seed. Or mark what you want more of, or less, and sample again: the next clips are pulled there."
                )
                with gr.Row(elem_classes="nrg-bar"):
                    low, high = CANDIDATES
                    self.candidates = slider(low, high, 4, 1, label="Candidates", min_width=180)
                    self.pull = slider(0, 20, PULL, 0.5, label="Pull", min_width=180, elem_id="nrg-pull")
                    self.best = gr.Button(
                        "Find the best", variant="primary", size="md", scale=0, min_width=140, elem_id="nrg-best-go"
                    )
                    self.again = gr.Button("Sample again", size="md", scale=0, min_width=140, elem_id="nrg-again-go")
                self._html("best", js_on_load=TELL_INDEX)
            with gr.Tab("History", id="history"):
                note(
                    "The pairs of this visit, latest first. They are deleted when you leave. Click one "
                    "to bring it back."
                )
                self._html("history", js_on_load=TELL_INDEX)

    def _html(self, part: str, **options: Any) -> None:
        self.parts[part] = gr.HTML(getattr(blank(), part), elem_id=f"nrg-{part}", **options)

    def _wire_runs(self) -> None:
        studio, name = self.studio, visit_name

        def compare(request: gr.Request, *values: Any) -> Iterator[list[Any]]:
            for view in studio.compare(name(request), self._values(values)):
                yield _painted(view)

        def sweep(request: gr.Request, fineness: str, *values: Any) -> Iterator[list[Any]]:
            for view in studio.sweep(name(request), self._values(values), FINENESS.get(fineness, 0)):
                yield _painted(view)

        def best(request: gr.Request, candidates: float, *values: Any) -> Iterator[list[Any]]:
            for view in studio.best_of(name(request), self._values(values), candidates):
                yield _painted(view)

        def again(request: gr.Request, candidates: float, pull: float) -> Iterator[list[Any]]:
            for view in studio.again(name(request), candidates, pull):
                yield _painted(view)

        def cancel(request: gr.Request) -> None:
            studio.cancel(name(request))

        seed = [self.lock, self.controls["seed"]]
        runs: Sequence[tuple[Any, Callable[..., Any], list[Any]]] = (
            (self.go.click, compare, []),
            (self.controls["prompt"].submit, compare, []),
            (self.sweep.click, sweep, [self.fineness]),
            (self.best.click, best, [self.candidates]),
        )
        for trigger, work, first in runs:
            with_seed = trigger(None, seed, seed, js="(keep, seed) => [keep, keep ? seed : nrgNewSeed()]", **AT_ONCE)
            with_seed.then(work, [*first, *self._inputs()], self._shown(), **PRIVATE, **RUNS)
        self.again.click(again, [self.candidates, self.pull], self._shown(), **PRIVATE, **RUNS)
        self.dice.click(None, None, self.controls["seed"], js="() => nrgNewSeed()", **AT_ONCE)
        self.stop.click(cancel, None, None, **AT_ONCE)

    def _wire_picks(self) -> None:
        studio, name = self.studio, visit_name

        def restore(request: gr.Request, event: gr.EventData) -> list[Any]:
            view = studio.restore(name(request), told(event))
            return [*self._taken(view), gr.Tabs(selected="compare")]

        def pick_sweep(request: gr.Request, event: gr.EventData) -> list[Any]:
            return self._taken(studio.pick(name(request), "sweep", told(event)))

        def pick_best(request: gr.Request, event: gr.EventData) -> list[Any]:
            if (mark := told(event, "mark")) is not None:
                return self._taken(studio.mark(name(request), told(event), mark))
            return self._taken(studio.pick(name(request), "best", told(event)))

        taken = [*self._shown(), self.preset, self.guidance_preset, *self._inputs()]
        self.parts["history"].select(restore, None, [*taken, self.tabs], **AT_ONCE)
        self.parts["sweep"].select(pick_sweep, None, taken, **AT_ONCE)
        self.parts["best"].select(pick_best, None, taken, **AT_ONCE)

    def _wire_settings(self) -> None:
        studio, inputs = self.studio, self._inputs()

        def weights_of(preset: str, model: str, prompt: str) -> list[Any]:
            view, values = studio.proposal(model, prompt) if preset == AUTO else (View(), PRESETS.get(preset))
            sliders = [gr.skip()] * len(self.weights)
            sliders[: len(values or ())] = values or ()
            return [or_skip(view.status), *sliders]

        def name_of(*weights: float) -> str:
            return preset_of(weights)

        def settings_of_preset(name: str) -> list[Any]:
            preset = GUIDANCE_PRESETS.get(name, {})
            return [preset.get(setting, gr.skip()) for setting in PRESET_SETTINGS]

        def name_of_settings(*values: Any) -> str:
            return guidance_preset_of(dict(zip(PRESET_SETTINGS, values, strict=True)))

        def plan(*values: Any) -> str:
            return studio.plan(self._values(values))

        def open_model(request: gr.Request, model: str) -> Iterator[list[Any]]:
            for view, axes in studio.open_model(visit_name(request), model):
                yield [or_skip(view.status), *self._sliders(axes)]

        def leave(request: gr.Request) -> None:
            studio.leave(visit_name(request))

        asked = [self.preset, self.controls["model"], self.controls["prompt"]]
        self.preset.input(weights_of, asked, [self.parts["status"], *self.weights], **AT_ONCE)
        for slider in self.weights:
            slider.input(name_of, self.weights, self.preset, **AT_ONCE)
        named = [self.controls[name] for name in PRESET_SETTINGS]
        self.guidance_preset.input(settings_of_preset, self.guidance_preset, named, **AT_ONCE)
        for part in named:
            part.input(name_of_settings, named, self.guidance_preset, **AT_ONCE)
        changes = [part.change for name, part in self.controls.items() if name != "prompt"]
        changes += [slider.change for slider in self.weights]
        gr.on(changes, plan, inputs, self.plan, trigger_mode="always_last", **AT_ONCE)
        blocks: Any = gr.context.Context.root_block
        for trigger in (blocks.load, self.controls["model"].input):
            opened = trigger(
                open_model, self.controls["model"], [self.parts["status"], *self.weights], **PRIVATE, **RUNS
            )
            opened.then(plan, inputs, self.plan, **AT_ONCE)
        blocks.unload(leave)

    def _inputs(self) -> list[Any]:
        return [*self.weights, *self.controls.values()]

    def _shown(self) -> list[Any]:
        return [
            *(self.parts[part] for part in HTML_PARTS),
            self.parts["snippet"],
            self.go,
            self.sweep,
            self.best,
            self.again,
            self.stop,
        ]

    def _values(self, inputs: Sequence[Any]) -> dict[str, Any]:
        """Name what the components hold; sliders of axes that the reward lacks are left out."""
        weights, rest = inputs[: len(self.weights)], inputs[len(self.weights) :]
        values = dict(zip(self.controls, rest, strict=True))
        axes = self.studio.engine.axes(str(values["model"]))
        return {**values, "weights": ":".join(f"{weight:g}" for weight in weights[: len(axes)] if weight is not None)}

    def _taken(self, view: View) -> list[Any]:
        """Return a view with the settings it brings back."""
        if view.values is None:
            return [*_painted(view), *[gr.skip()] * (2 + len(self._inputs()))]
        weights = [float(weight) for weight in view.values["weights"].split(":")]
        sliders = [weights[index] if index < len(weights) else gr.skip() for index in range(len(self.weights))]
        settings = {**view.values, "scheduler": view.values["scheduler"] or OWN_SCHEDULER}
        names = [preset_of(weights), guidance_preset_of(settings)]
        return [*_painted(view), *names, *sliders, *(settings[name] for name in self.controls)]

    def _sliders(self, axes: Sequence[str] | None) -> list[Any]:
        """Name the sliders after the axes of a reward and hide those it lacks."""
        if axes is None:
            return [gr.skip()] * len(self.weights)
        named = [gr.Slider(visible=True, **_named(axis)) for axis in axes[: len(self.weights)]]
        return named + [gr.Slider(visible=False)] * (len(self.weights) - len(named))


def _named(axis: str) -> dict[str, Any]:
    title, info = AXIS_NAMES.get(axis, ("", "An axis of this reward."))
    return {"label": f"{axis} · {title}" if title else axis, "info": info}


def _component(name: str, control: Control) -> Any:
    usual: Any = control.show(getattr(RewardGuidance(), name))
    about: dict[str, Any] = {"label": control.label, "info": control.info, "elem_id": f"nrg-{name}", "min_width": 140}
    if isinstance(control, Choice):
        return gr.Dropdown(list(control.options), value=usual, **about)
    if isinstance(control, Switch):
        return gr.Checkbox(usual, **about)
    if isinstance(control, Text) or control.optional:
        return gr.Textbox(usual, max_length=TEXT_LENGTH, **about)
    return slider(control.low, control.high, usual, control.step, **about)


def _painted(view: View) -> list[Any]:
    """Return the new values of what ``Page._shown`` lists."""
    parts = [or_skip(getattr(view, part)) for part in (*HTML_PARTS, "snippet")]
    if view.busy is None:
        return [*parts, *[gr.skip()] * 5]
    return [*parts, *[gr.Button(interactive=not view.busy)] * 4, gr.Button(interactive=view.busy)]
