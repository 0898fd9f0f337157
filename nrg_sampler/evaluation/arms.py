"""What is compared: arms, each a name and a way to sample.

An arm differs from the guidance it is made from in what it is named after. The published tables are made from
``RewardGuidance.preset("best")``, which evaluates the reward in every step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nrg_sampler.guidance.fields import settings_of
from nrg_sampler.guidance.presets import PRESETS
from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.lookahead import Lookahead
from nrg_sampler.rewards.weights import RewardWeights
from nrg_sampler.search import Search

UNGUIDED = "unguided"
AXIS_WEIGHTS = {"VQ": "1:0:0", "MQ": "0:1:0", "TA": "0:0:1"}
MIXED_WEIGHTS = ("0.1:0.1:0.8", "0.1:0.1:0.6", "0.5:0.5:0")  # with those of one axis, the paper's Table 5 and more
FLOOR = "TA"
PAPER_SCALE = 30.0  # of the paper's w, by gains on validation prompts: its 100 is for another reward and model
AHEAD = 0.1  # of the lookahead, by gains on validation prompts
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Arm:
    """One way to sample.

    Args:
        name: What tables call it.
        guidance: Its settings; ``None`` samples without guidance.
        steps: Denoising steps, as a multiple of the other arms'.
        search: How the best of several candidates is found; ``None`` takes the one of the prompt's own seed.
        judge: Who chooses among finished candidates, or scores look-ahead samples: a judge's name, or ``None`` for the
            reward.
        reward: Which reward guides: ``"target"``; ``"clean"``, trained on clean latents; ``"pixel"``, the pixel judge
            through the predicted clean latents and the VAE; ``"random"``, a random direction with the norm of the
            target's gradient.
        lookahead: Which look-ahead samples pull, if any do.
    """

    name: str
    guidance: RewardGuidance | None = None
    steps: float = 1.0
    search: Search | None = None
    judge: str | None = None
    reward: str = "target"
    lookahead: Lookahead | None = None

    @property
    def weights(self) -> str:
        """The weights it guides by, as a table writes them."""
        return str(self.guidance.weights) if self.guidance else "-"

    @property
    def candidates(self) -> int:
        """How many finished clips it takes one of; a search that gives some up on the way finishes one by itself."""
        return 1 if self.search is None or self.search.moments else self.search.candidates

    def guided_by(self, judge: str) -> bool:
        """Return whether ``judge`` had a say in its clips, so that its grades of them are no evidence."""
        return judge in (self.judge, self.reward)


def weights_suite(base: RewardGuidance) -> list[Arm]:
    """The unguided run, each axis alone, all three, each with the sign flipped; then the paper's mixtures.

    Reference:
        Liu et al., 2025, arXiv:2501.13918, Table 5.
    """
    weighed = {
        weights: replace(base, weights=weights) for weights in ("1:1:1", *AXIS_WEIGHTS.values(), *MIXED_WEIGHTS)
    }
    without = MIXED_WEIGHTS[-1]
    return [
        Arm(UNGUIDED),
        *(Arm(weights, weighed[weights]) for weights in ("1:1:1", *AXIS_WEIGHTS.values())),
        *(Arm(f"{weights} flipped", flipped(weighed[weights])) for weights in AXIS_WEIGHTS.values()),
        *(Arm(weights, weighed[weights]) for weights in MIXED_WEIGHTS),
        Arm(f"{without} floor {FLOOR}", replace(weighed[without], floor=FLOOR)),
    ]


def noise_aware_suite(base: RewardGuidance) -> list[Arm]:
    """A reward trained on noised latents beside one trained on clean ones, and the latter where there is no noise.

    The two are compared four times: by the settings of ``base``, which trust either reward less in noise; by those of
    the paper, which trust it more, at a strength that suits the bundled reward and at the paper's own; and in the
    first half of the steps alone, where latents are mostly noise.

    Reference:
        Liu et al., 2025, arXiv:2501.13918v1, Table 7 (motion quality alone).
    """
    motion = replace(base, weights=AXIS_WEIGHTS["MQ"])
    settings = {
        "": motion,
        ", paper": RewardGuidance.paper(PAPER_SCALE, motion.weights),
        ", paper to the letter": RewardGuidance.paper(weights=motion.weights),
        ", first half": replace(motion, stop=0.5),
    }
    return [
        Arm(UNGUIDED),
        *(
            Arm(f"{trained} latents{name}", guidance, reward=reward)
            for name, guidance in settings.items()
            for trained, reward in (("noised", "target"), ("clean", "clean"))
        ),
        Arm("clean latents, read at x0", replace(motion, lookahead=1.0), reward="clean"),
        Arm("pixels through x0", replace(motion, disagreement=0.0), reward="pixel"),
    ]


def rivals_suite(base: RewardGuidance) -> list[Arm]:
    """What else the same network evaluations could buy, and controls that must not help."""
    weights = base.weights
    return [
        Arm(UNGUIDED),
        Arm("guided", base),
        Arm("paper", RewardGuidance.paper(PAPER_SCALE, weights)),
        Arm("paper to the letter", RewardGuidance.paper(weights=weights)),
        Arm("more steps x1.4", steps=1.4),
        Arm("more steps x2", steps=2.0),
        Arm("best of 2", search=Search.best_of(2, weights)),
        Arm("best of 4", search=Search.best_of(4, weights)),
        *(
            Arm(f"best of {n}, {name} chooses", search=Search.best_of(n), judge=judge)
            for judge, name in (("oracle", "oracle"), ("pixel", "pixel judge"))
            for n in (2, 4)
        ),
        Arm("resampling", search=Search(weights=weights)),
        Arm("particles", search=Search.particles(4, weights)),
        *lookahead_arms(base),
        Arm("guided, best of 2", base, search=Search.best_of(2, weights)),
        Arm("guided, best of 2, pixel judge chooses", base, search=Search.best_of(2), judge="pixel"),
        Arm("guided, all noise trusted alike", replace(base, damping=0.0, fading=0.0)),
        Arm("guided, first third", replace(base, stop=1 / 3)),
        Arm("guided, looking ahead", replace(base, lookahead=AHEAD)),
        Arm("guided every 2nd step", replace(base, every=2, reuse=False)),
        Arm("guided, reused every 2nd", replace(base, every=2, reuse=True)),
        *(Arm(f"preset {name}", replace(base, **settings)) for name, settings in PRESETS.items()),
        Arm("skip-gradient", replace(base, lookahead=1.0)),
        Arm("random direction", replace(base, disagreement=0.0), reward="random"),
        Arm("flipped", flipped(base)),
    ]


def lookahead_arms(base: RewardGuidance) -> list[Arm]:
    """Look-ahead samples without any gradient, by who scores them; a judge also beside guidance by the reward."""
    name, by_reward = "look-ahead of 8", Lookahead(weights=base.weights)
    return [
        Arm(name, lookahead=by_reward),
        *(
            Arm(f"{name}, {told} scores", judge=judge, lookahead=Lookahead())
            for judge, told in (("oracle", "oracle"), ("pixel", "pixel judge"))
        ),
        Arm(f"guided, {name}, pixel judge scores", base, judge="pixel", lookahead=Lookahead()),
    ]


def scale_sweep_suite(base: RewardGuidance) -> list[Arm]:
    """The same guidance from weak to far too strong."""
    return [Arm(UNGUIDED), *(Arm(f"scale {scale:g}", replace(base, scale=scale * base.scale)) for scale in SCALES)]


def flipped(guidance: RewardGuidance) -> RewardGuidance:
    """Return the guidance that pushes the other way."""
    return replace(guidance, scale=-guidance.scale)


def wanted_arms(every: Sequence[Arm], wanted: Sequence[str], base: RewardGuidance) -> list[Arm]:
    """Return the unguided arm and the wanted ones.

    Args:
        every: The arms of a suite.
        wanted: Each the name of one of them, or weights, and then any settings of the guidance, such as
            ``"1:1:1 scale=2 max_push=0.2"``.
        base: The guidance of arms that are given by their weights.

    Raises:
        ValueError: If there is no such arm, or a setting is unknown or out of range.
    """
    found = {UNGUIDED: next(arm for arm in every if arm.name == UNGUIDED)}
    for text in wanted:
        found[" ".join(text.split())] = _wanted_arm(every, text, base)
    return list(found.values())


def _wanted_arm(every: Sequence[Arm], text: str, base: RewardGuidance) -> Arm:
    words = text.split()
    kinds = settings_of(type(base)).keys() | settings_of(Lookahead).keys() - {"weights"}
    settings = [word for word in words if "=" in word and word.partition("=")[0] in kinds]
    given = dict(word.split("=", 1) for word in settings)
    name = " ".join(word for word in words if word not in settings)
    arm = next((arm for arm in every if arm.name == name), None) or _by_weights(name, base)
    changed = {} if arm is None else _changed(arm, given)
    if arm is None or changed is None:
        names = ", ".join(repr(arm.name) for arm in every)
        raise ValueError(
            f"Expected arms from {names}, or weights such as 0.2:0.3:0.5, a guided one with settings such as scale=2 "
            f"({', '.join(name for name in settings_of(type(base)) if name != 'weights')}), but got {text!r}."
        )
    return replace(arm, name=" ".join(words), **changed) if changed else arm


def _changed(arm: Arm, given: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the settings of an arm with others in place of some; ``None`` if it has none of these names.

    They are those of its look-ahead samples, if such alone guide, else of its guidance.
    """
    if not given:
        return {}
    name = "lookahead" if arm.guidance is None else "guidance"
    settings: Any = getattr(arm, name)
    known = {} if settings is None else settings_of(type(settings))
    if not given.keys() <= known.keys():
        return None
    return {name: replace(settings, **{key: known[key].read(value) for key, value in given.items()})}


def _by_weights(text: str, base: RewardGuidance) -> Arm | None:
    try:
        weights = RewardWeights.parse(text)
        if not weights.auto:
            weights.resolve(tuple(AXIS_WEIGHTS))
        return Arm(text, replace(base, weights=weights))
    except ValueError:
        return None


SUITES: dict[str, Callable[[RewardGuidance], list[Arm]]] = {
    "weights": weights_suite,
    "noise-aware": noise_aware_suite,
    "rivals": rivals_suite,
    "scale-sweep": scale_sweep_suite,
}
