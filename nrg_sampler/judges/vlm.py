"""A vision-language model behind a URL as a judge: it looks at frames and grades VQ, MQ and TA from 1 to 5.

The grade is the expected value over the tokens "1" to "5" of its answer, which varies smoothly where the digit itself
does not. There is no gradient: it grades finished clips and chooses among them.

The wording of the questions is the project's own. A model that was tuned to grade with other words is asked these.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from nrg_sampler.judges.chat import ChatModel, Grade
from nrg_sampler.rewards.named.judge import check_frames, require_one_each

FRAMES = 8
AT_ONCE = 8  # requests
FORMATS = ("jpeg", "png")
JPEG_QUALITY = 95

QUESTIONS = {
    "VQ": "How good is the picture quality: is it sharp where it should be, free of noise, artefacts and malformed "
    "shapes, and pleasing in its light and colours?",
    "MQ": "How good is the motion: is it smooth and physically plausible, without flicker, jumps, or objects that "
    "change their shape or vanish?",
    "TA": "How completely and correctly is shown what the following text asks for, with its objects, their number and "
    "attributes, and their actions? The text: {prompt}",
}
SCALE = "Grade it from 1 (very poor) to 5 (excellent). Answer with that one digit and nothing else."


class VlmJudge:
    """Grade clips by a vision-language model.

    Args:
        model: Who is asked.
        frames: How many frames of a clip are shown, evenly spread from the first to the last.
        image: ``"jpeg"``, or ``"png"`` which loses nothing and is larger.

    Raises:
        ValueError: If an argument is out of range.
    """

    axes: tuple[str, ...] = tuple(QUESTIONS)

    def __init__(self, model: ChatModel, frames: int = FRAMES, image: str = "jpeg") -> None:
        if frames < 1 or image not in FORMATS:
            raise ValueError(
                f"Expected 1 frame or more as {' or '.join(FORMATS)}, but got {frames} as {image!r}; correct it."
            )
        self.model, self.frames, self.image = model, frames, image
        self._fallback_said = False

    @classmethod
    def from_name(cls, source: str) -> VlmJudge:
        """Make a judge of what follows ``vlm:``.

        Args:
            source: ``URL#MODEL``, or ``URL#MODEL?frames=8&timeout=60`` with settings: ``frames``, ``image``,
                ``timeout`` and ``wait`` in seconds, ``retries``, ``tokens``, and ``key``, the name of the environment
                variable with the API key.

        Raises:
            ValueError: If it is not of this form.
        """
        url, _, rest = source.partition("#")
        name, _, text = rest.partition("?")
        if not url or not name:
            raise ValueError(
                f"Expected a server and a model, as vlm:http://localhost:8000/v1#MODEL, but got 'vlm:{source}'; write "
                "vlm:URL#MODEL in quotes."
            )
        settings = {key: _setting(key, value) for key, _, value in (part.partition("=") for part in text.split("&"))}
        settings.pop("", None)
        own = {key: settings.pop(key) for key in ("frames", "image") if key in settings}
        return cls(ChatModel(url, name, **settings), **own)

    def frames_seen(self, total: int, fps: float) -> int:
        """Return how many of ``total`` frames are looked at."""
        return min(total, self.frames)

    def __call__(self, clips: Tensor, prompts: Sequence[str], fps: float | None) -> Tensor:
        """Grade clips.

        Args:
            clips: Shape ``(B, 3, T, H, W)``, in ``[0, 1]``.
            prompts: One for each clip.
            fps: Frames per second of the clips, ``None`` if it is not known.

        Returns:
            Grades from 1 to 5, shape ``(B, 3)``.

        Raises:
            ValueError: If the clips are none or a gradient is wanted, or an answer cannot be had.
        """
        if clips.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                "Expected a judge with a gradient to guide with, but a model behind a URL has none; guide with one of "
                "`nrg-sampler rewards`, and let this judge choose among samples, or guide by `lookahead`."
            )
        check_frames(clips)
        require_one_each(prompts, clips)
        shown = [self._pictures(clip, fps) for clip in clips]
        jobs = [(clip, prompt, axis) for clip, prompt in zip(shown, prompts, strict=True) for axis in self.axes]
        pool = ThreadPoolExecutor(min(AT_ONCE, len(jobs)))
        try:
            grades = list(pool.map(self._grade, jobs))
        finally:
            pool.shutdown(cancel_futures=True)  # after the first failure none of the others is asked
        if not self._fallback_said and not all(grade.expected for grade in grades):
            self._fallback_said = True
            warnings.warn(
                f"{self.model.url} gives no probabilities of tokens, so that grades are the whole digits which "
                f"{self.model.name} writes; a server with `logprobs` grades more finely.",
                stacklevel=2,
            )
        return torch.tensor([grade.value for grade in grades]).view(len(clips), len(self.axes))

    def _grade(self, job: tuple[list[dict[str, Any]], str, str]) -> Grade:
        pictures, prompt, axis = job
        question = f"{QUESTIONS[axis].format(prompt=prompt)}\n{SCALE}"
        return self.model.grade([*pictures, {"type": "text", "text": question}], axis)

    def _pictures(self, clip: Tensor, fps: float | None) -> list[dict[str, Any]]:
        """Return what is said of the frames, and them, as parts of a message."""
        total = clip.shape[1]
        count = min(total, self.frames)
        places = [round(index * (total - 1) / max(1, count - 1)) for index in range(count)]
        levels = (clip[:, places].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()
        length = f" of {total / fps:.1f} seconds" if fps else ""
        about = f"These are {count} frames of a video{length}, evenly spread and in their order."
        if total == 1:
            about = "This is a picture."
        elif count == 1:
            about = f"This is the first frame of a video{length}."
        return [{"type": "text", "text": about}, *map(self._encoded, levels)]

    def _encoded(self, picture: Any) -> dict[str, Any]:
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(picture).save(file, format=self.image, quality=JPEG_QUALITY)
        data = base64.b64encode(file.getvalue()).decode()
        return {"type": "image_url", "image_url": {"url": f"data:image/{self.image};base64,{data}"}}


def _setting(key: str, value: str) -> Any:
    """Read a setting that stands behind the name of the model."""
    kinds: dict[str, Callable[[str], Any]] = {
        **dict.fromkeys(("frames", "retries", "tokens"), int),
        **dict.fromkeys(("timeout", "wait"), float),
        **dict.fromkeys(("key", "image", ""), str),
    }
    try:
        return kinds[key](value)
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"Expected settings of a vlm judge from {', '.join(name for name in kinds if name)}, but got "
            f"'{key}={value}'; write them as ?frames=8&timeout=60 behind the model."
        ) from error
