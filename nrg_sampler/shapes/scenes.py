"""The world of shapes: what a scene is, how it is described in words, and how it is split.

A scene is one coloured shape that moves over a quiet background for ``NUM_FRAMES`` frames. Coordinates are in
units of the picture's side: (0, 0) is the top left corner, x grows to the right, y grows downward.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

SHAPES = ("circle", "square", "triangle", "star", "ring")
COLORS = {
    "red": (0.90, 0.14, 0.16),
    "orange": (0.97, 0.50, 0.06),
    "yellow": (0.97, 0.87, 0.12),
    "green": (0.14, 0.70, 0.26),
    "cyan": (0.10, 0.80, 0.84),
    "blue": (0.13, 0.33, 0.92),
    "purple": (0.54, 0.18, 0.80),
    "pink": (0.98, 0.40, 0.70),
}
MOTIONS = ("right", "left", "up", "down", "clockwise", "counterclockwise", "swaying", "growing", "shrinking")
BACKGROUNDS = ("plain", "gradient", "striped", "checkered")
SIZES = {"small": (0.115, 0.145), "large": (0.175, 0.205)}
ATTRIBUTES = {"shape": SHAPES, "color": tuple(COLORS), "motion": MOTIONS, "background": BACKGROUNDS}

HEIGHT = WIDTH = 64
NUM_FRAMES = 13
FPS = 8

MOTION_PHRASES = {
    "right": ("moving right", "moving to the right", "sliding to the right", "that drifts right"),
    "left": ("moving left", "moving to the left", "sliding to the left", "that drifts left"),
    "up": ("moving up", "moving upward", "rising", "that drifts up"),
    "down": ("moving down", "moving downward", "falling", "that drifts down"),
    "clockwise": ("circling clockwise", "moving in a clockwise circle", "that orbits clockwise"),
    "counterclockwise": (
        "circling counterclockwise",
        "moving in a counterclockwise circle",
        "that orbits counterclockwise",
    ),
    "swaying": ("swaying from side to side", "swinging back and forth", "that sways left and right"),
    "growing": ("growing", "getting bigger", "that grows"),
    "shrinking": ("shrinking", "getting smaller", "that shrinks"),
}
BACKGROUND_PHRASES = {
    "plain": ("on a plain background", "over a plain wall"),
    "gradient": ("on a gradient background", "in front of a gradient sky"),
    "striped": ("on a striped background", "over stripes"),
    "checkered": ("on a checkered background", "over a checkered floor"),
}
OPENINGS = ("", "a video of ", "an animation of ")


@dataclass(frozen=True)
class Prompt:
    """The attributes that a caption names; ``None`` leaves one open.

    Args:
        shape: One of ``SHAPES``.
        color: One of ``COLORS``.
        motion: One of ``MOTIONS``.
        background: One of ``BACKGROUNDS``, or ``None``.
        size: One of ``SIZES``, or ``None``.
    """

    shape: str
    color: str
    motion: str
    background: str | None = None
    size: str | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        for name, allowed in ATTRIBUTES.items():
            value = getattr(self, name)
            if value not in allowed and not (name == "background" and value is None):
                raise ValueError(f"Expected `{name}` to be one of {', '.join(allowed)}, but got {value!r}.")
        if self.size is not None and self.size not in SIZES:
            raise ValueError(f"Expected `size` to be one of {', '.join(SIZES)} or None, but got {self.size!r}.")

    @property
    def combination(self) -> tuple[str, str, str]:
        """Shape, colour and motion, which decide the split."""
        return self.shape, self.color, self.motion


@dataclass(frozen=True)
class Scene:
    """Everything the renderer needs to draw one clip.

    Args:
        prompt: The attributes; ``background`` and ``size`` are set here, also where the caption leaves them open.
        radius: Circumscribed radius of the shape at mid-clip, in picture sides.
        place: Centre of the path, ``(x, y)``.
        amount: Strength of the motion: distance travelled, orbit radius, half-width of the sway, or growth factor.
        turns: Turns (circling) or periods (swaying) in one clip.
        phase: Where on its circle or sway the shape starts, in radians.
        tone: Two numbers in ``[0, 1]``: the background's brightness and tint.
        shift: Where the background's pattern starts, ``(x, y)`` in radians.
    """

    prompt: Prompt
    radius: float
    place: tuple[float, float]
    amount: float
    turns: float
    phase: float
    tone: tuple[float, float]
    shift: tuple[float, float]


def caption(prompt: Prompt, rng: random.Random | None = None) -> str:
    """Describe a prompt in words; with ``rng`` one of several phrasings, without it the plainest one."""
    choose = rng.choice if rng else lambda options: options[0]
    size = f"{prompt.size} " if prompt.size else ""
    noun = f"{size}{prompt.color} {prompt.shape}"
    article = "an" if noun[0] in "aeiou" else "a"
    text = f"{choose(OPENINGS)}{article} {noun} {choose(MOTION_PHRASES[prompt.motion])}"
    return f"{text} {choose(BACKGROUND_PHRASES[prompt.background])}" if prompt.background else text


def vocabulary() -> list[str]:
    """Every word that a caption can contain, sorted."""
    phrases = itertools.chain(OPENINGS, *MOTION_PHRASES.values(), *BACKGROUND_PHRASES.values())
    words = {word for phrase in phrases for word in phrase.split()}
    return sorted(words | {"a", "an", *SIZES, *COLORS, *SHAPES})


def split_of(prompt: Prompt) -> str:
    """Return the split that a prompt belongs to: ``train``, ``validation`` or ``test``.

    The split is decided by the whole (shape, colour, motion) combination, so no caption, clip or preference pair of
    a held-out combination is ever trained on: ``validation`` may tune settings, ``test`` only grades. Of the 360
    combinations 253 are for training, 59 for validation and 48 for the test; each of the two that are held out
    shows every shape, colour and motion.
    """
    digest = hashlib.sha256("/".join(prompt.combination).encode()).digest()
    percent = int.from_bytes(digest[:4], "big") % 100
    return "train" if percent < 68 else "validation" if percent < 85 else "test"


def prompts(split: str) -> list[Prompt]:
    """List the fully specified prompts of a split, in an order that mixes the attributes (fixed, not random)."""
    if split not in ("train", "validation", "test"):
        raise ValueError(f"Expected `split` to be train, validation or test, but got {split!r}.")
    sizes = (None, *SIZES)
    combinations = itertools.product(SHAPES, COLORS, MOTIONS, BACKGROUNDS, sizes)
    chosen = [prompt for prompt in itertools.starmap(Prompt, combinations) if split_of(prompt) == split]
    return sorted(chosen, key=lambda prompt: hashlib.sha256(caption(prompt).encode()).digest())


def sample_prompt(rng: random.Random, split: str = "train") -> Prompt:
    """Draw a prompt of a split; the background is named in five of six captions, the size in two of five."""
    while True:
        prompt = Prompt(
            shape=rng.choice(SHAPES),
            color=rng.choice(tuple(COLORS)),
            motion=rng.choice(MOTIONS),
            background=rng.choice(BACKGROUNDS) if rng.random() < 5 / 6 else None,
            size=rng.choice(tuple(SIZES)) if rng.random() < 2 / 5 else None,
        )
        if split_of(prompt) == split:
            return prompt


def sample_scene(prompt: Prompt, rng: random.Random) -> Scene:
    """Draw the place, size, speed and background details that a prompt leaves open; the shape stays in the picture."""
    background = prompt.background or rng.choice(BACKGROUNDS)
    low, high = SIZES[prompt.size] if prompt.size else (SIZES["small"][0], SIZES["large"][1])
    radius = rng.uniform(low, high)
    turns = phase = 0.0
    reach_x = reach_y = 0.0  # how far the path leads away from its centre
    if prompt.motion in ("right", "left", "up", "down"):
        amount = rng.uniform(0.34, 0.96 - 2 * SIZES["large"][1])
        reach_x, reach_y = (amount / 2, 0.0) if prompt.motion in ("right", "left") else (0.0, amount / 2)
    elif prompt.motion in ("clockwise", "counterclockwise"):
        amount, turns, phase = rng.uniform(0.15, 0.21), rng.uniform(0.8, 1.15), rng.uniform(0, 2 * math.pi)
        reach_x = reach_y = amount
    elif prompt.motion == "swaying":
        amount, turns = rng.uniform(0.16, 0.24), rng.uniform(1.0, 1.4)
        phase = rng.choice((0.0, math.pi)) + rng.uniform(-0.4, 0.4)
        reach_x = amount
    else:
        amount = rng.uniform(1.8, 2.3)
        radius = min(radius, 0.19)
    extent = radius * math.sqrt(amount) if prompt.motion in ("growing", "shrinking") else radius
    margin_x, margin_y = extent + reach_x + 0.015, extent + reach_y + 0.015
    return Scene(
        prompt=replace(prompt, background=background, size=None),
        radius=radius,
        place=(rng.uniform(margin_x, 1 - margin_x), rng.uniform(margin_y, 1 - margin_y)),
        amount=amount,
        turns=turns,
        phase=phase,
        tone=(rng.random(), rng.random()),
        shift=(rng.uniform(0, 2 * math.pi), rng.uniform(0, 2 * math.pi)),
    )


def words_of(text: str) -> list[str]:
    """Split a prompt into words as the bundled tokenizer does: lower case, punctuation dropped."""
    return re.sub(r"[.,;:!?\"'()]", " ", text.lower()).split()


def unknown_words(text: str) -> list[str]:
    """List the words of a prompt outside the vocabulary of the bundled model, each once, in order."""
    known = set(vocabulary())
    return list(dict.fromkeys(word for word in words_of(text) if word not in known))


def parse(text: str) -> Prompt | None:
    """Parse a caption into its attributes; ``None`` unless shape, colour and motion are each named once."""
    words = words_of(text)
    sentence = f" {' '.join(words)} "

    def named(phrases: Mapping[str, tuple[str, ...]]) -> list[str]:
        return [name for name, options in phrases.items() if any(f" {option} " in sentence for option in options)]

    nouns = sentence  # a "clockwise circle" is a motion, not a shape
    for phrase in itertools.chain(*MOTION_PHRASES.values()):
        nouns = nouns.replace(f" {phrase} ", " ")
    named_values = {
        "shape": [shape for shape in SHAPES if f" {shape} " in nouns],
        "color": [color for color in COLORS if color in words],
        "motion": named(MOTION_PHRASES),
        "background": named(BACKGROUND_PHRASES),
        "size": [size for size in SIZES if size in words],
    }
    if any(len(named_values[name]) != 1 for name in ("shape", "color", "motion")):
        return None
    if any(len(named_values[name]) > 1 for name in ("background", "size")):
        return None
    return Prompt(**{name: values[0] for name, values in named_values.items() if values})
