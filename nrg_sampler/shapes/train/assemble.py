"""Put the trained parts together: a genuine ``WanPipeline`` folder and the reward beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nrg_sampler.json_text import read_object, to_json
from nrg_sampler.rewards.base import RewardHooks
from nrg_sampler.rewards.card import by_axis

if TYPE_CHECKING:
    from diffusers import WanPipeline

    from nrg_sampler.rewards.latent import LatentReward
    from nrg_sampler.shapes.judge import PixelJudge

AGAIN = "make it again with its stage"
SAMPLING = {
    "height": 64,
    "width": 64,
    "num_frames": 13,
    "num_inference_steps": 25,
    "guidance_scale": 4.0,
    "max_sequence_length": 32,
    "fps": 8,
    "closed_vocabulary": True,
}


def assemble_pipeline(folder: Path) -> WanPipeline:
    """Build the pipeline from the parts that the stages saved, in float32.

    Raises:
        FileNotFoundError: If a stage has not been run.
    """
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
    from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

    for part, stage in (("vae", "vae"), ("text_encoder", "base"), ("transformer", "base")):
        if not (folder / part).is_dir():
            raise FileNotFoundError(f"Expected {folder / part}, made by the stage `{stage}`: run that one first.")
    return WanPipeline(
        tokenizer=PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval(),
        transformer=WanTransformer3DModel.from_pretrained(folder / "transformer").requires_grad_(False).eval(),
        vae=AutoencoderKLWan.from_pretrained(folder / "vae").requires_grad_(False).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0),
    )


def save_bundle(folder: Path, out: Path) -> None:
    """Write ``out/pipeline``, ``out/reward`` and, if trained, ``out/judge`` in half precision, with model cards."""
    from nrg_sampler.rewards.latent import LatentReward
    from nrg_sampler.rewards.latent_space import latent_space
    from nrg_sampler.shapes.judge import PixelJudge

    pipe = assemble_pipeline(folder)
    pipe.to(dtype=torch.float16)
    pipe.save_pretrained(out / "pipeline")
    (out / "pipeline" / "sampling.json").write_text(to_json(SAMPLING, indent=2) + "\n")
    config = pipe.transformer.config
    width = config.num_attention_heads * config.attention_head_dim
    (out / "pipeline" / "README.md").write_text(PIPELINE_CARD.format(blocks=config.num_layers, width=width))
    reward = LatentReward.from_pretrained(folder / "reward", dtype=torch.float32)
    reward.register_to_config(latent_space=latent_space(pipe.vae))
    accuracy = read_object(folder / "reward-accuracy.json", AGAIN)
    measured = folder / "gate-accuracy.json"
    gate = read_object(measured, AGAIN) if reward.has_gate and measured.exists() else None
    reward.to(dtype=torch.float16).save_pretrained(out / "reward")
    (out / "reward" / "README.md").write_text(reward_card(reward, accuracy, gate))
    if (folder / "judge").is_dir():
        judge = PixelJudge.from_pretrained(folder / "judge", dtype=torch.float32)
        judge.to(dtype=torch.float16).save_pretrained(out / "judge")
        grades = read_object(folder / "judge-accuracy.json", AGAIN)
        (out / "judge" / "README.md").write_text(judge_card(judge, grades))
    for file in out.rglob("config.json"):
        settings = read_object(file, AGAIN)
        settings.pop("_name_or_path", None)  # a path of the machine that trained the parts
        file.write_text(to_json(settings, indent=2) + "\n")


PIPELINE_CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-video
---

# shapes: a small text-to-video model

A `WanPipeline` that draws one coloured shape moving over a quiet background: 64x64 pixels, 13 frames, 8 frames a
second. It exists so that guidance can be tried, tested and measured without a download or a GPU.

- **Parts.** `AutoencoderKLWan` (8x in space, 2x in time, 16 channels), a two-layer UMT5 encoder with a word-level
  tokenizer, `WanTransformer3DModel` ({blocks} blocks, width {width}), `FlowMatchEulerDiscreteScheduler`.
- **Words.** Five shapes, eight colours, nine motions, four backgrounds, two sizes, in several phrasings; other words
  are refused.
- **Data.** Clips rendered by `nrg_sampler.shapes`; three (shape, colour, motion) combinations in ten were never
  trained on.
- **Training.** `python -m nrg_sampler.shapes.train vae`, then `base`, on two CPU cores; stored in half precision.
- **Limits.** It knows nothing but this world, and often misses one of the attributes it was asked for.
- **Licence.** Apache-2.0.
"""


def reward_card(
    reward: LatentReward,
    accuracy: dict[str, dict[str, dict[str, dict[str, float]]]],
    gate: dict[str, dict[str, float]] | None = None,
) -> str:
    """Describe a trained reward and its held-out accuracy, by kind of pair, noise level and axis, and its gate's."""
    axes, hooks = reward.axes, RewardHooks.of(reward)
    statistics = ", ".join(
        f"{axis} {mean:.3f} / {std:.3f}" for axis, mean, std in zip(axes, reward.mean, reward.std, strict=True)
    )
    return "\n".join(
        [
            "---",
            "license: apache-2.0",
            "library_name: nrg-sampler",
            "---",
            "",
            "# shapes: a noise-aware latent reward",
            "",
            "Scores noisy latents of the bundled `shapes` pipeline on visual quality (VQ), motion quality (MQ) and",
            f"text alignment (TA). Its trunk is the first {reward.config.num_blocks} of the pipeline's transformer",
            "blocks, trained further.",
            "",
            "- **Data.** Rendered clips with graded faults, samples of the pipeline at several settings and samples",
            "  guided by the rewards before it, compared and scored by the oracle with annotator noise and ties; all",
            "  clips of a comparison under the same noise, at last under four prompts, three of them changed.",
            "  Held-out combinations were not used.",
            "- **Loss.** Bradley-Terry with ties, k = 5, and half the squared error in the scores. First on clean",
            "  latents, then with sigma uniform in (0, 1), then with clips that over-optimise the reward so far, half",
            "  of all clips moved along the reward's own gradient under the same labels; at last it also named what a",
            "  clip shows (shape, colour, motion, background, size).",
            f"- **Mean / standard deviation** of the raw reward over samples of the pipeline: {statistics}.",
            "- **Recommended** scale, damping and fading (powers of 1-sigma and sigma), chosen on validation prompts: "
            f"{by_axis(hooks.recommended_scale, axes)}; {by_axis(hooks.recommended_damping, axes)}; "
            f"{by_axis(hooks.recommended_fading, axes)}.",
            "- **Licence.** Apache-2.0.",
            "",
            "Held-out pairs ranked as the oracle ranks them, in percent (number of pairs), ties left out.",
            "",
            "Pairs of any clips, under the prompt of one of them:",
            "",
            *_accuracy_table(axes, accuracy["mixed"]),
            "",
            "Pairs of samples of one prompt, which is what guidance has to choose between:",
            "",
            *_accuracy_table(axes, accuracy["same"]),
            "",
            *(_gate_lines(gate) if gate else []),
        ]
    )


def _gate_lines(gate: dict[str, dict[str, float]]) -> list[str]:
    cells = [
        f"| {axis} | {row['rank_correlation']:.2f} | {row['ceiling']:.2f} | {row['prompts']} |"
        for axis, row in gate.items()
    ]
    return [
        'Its gate proposes weights from the prompt (`weights="auto"`): rank correlation of the deficit that it',
        "predicts with the one that samples of held-out prompts had, and how high that could be with as few samples:",
        "",
        "| axis | rank correlation | at most | prompts |",
        "|---|---|---|---|",
        *cells,
        "",
    ]


def _accuracy_table(axes: Sequence[str], accuracy: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    rows = [
        f"| {sigma} | "
        + " | ".join(f"{100 * table[axis]['accuracy']:.1f} ({table[axis]['pairs']})" for axis in axes)
        + " |"
        for sigma, table in accuracy.items()
    ]
    return [f"| sigma | {' | '.join(axes)} |", f"|---|{'---|' * len(axes)}", *rows]


def judge_card(judge: PixelJudge, accuracy: dict[str, dict[str, dict[str, float]]]) -> str:
    """Describe a trained judge, how often it ranks held-out pairs as the oracle does, and as the reward does."""
    statistics = ", ".join(
        f"{axis} {mean:.3f} / {std:.3f}" for axis, mean, std in zip(judge.axes, judge.mean, judge.std, strict=True)
    )
    rows = []
    for kind in ("mixed", "same"):
        for axis, cell in accuracy[kind].items():
            agreement = f"{100 * cell['agreement']:.1f}" if "agreement" in cell else "-"
            rows.append(f"| {kind} | {axis} | {100 * cell['accuracy']:.1f} | {agreement} | {cell['pairs']} |")
    parameters = sum(value.numel() for value in judge.parameters()) / 1e6
    by_attribute = [
        f"| {name} | {100 * cell['accuracy']:.1f} | {cell['pairs']} |" for name, cell in accuracy["reading"].items()
    ]
    return "\n".join(
        [
            "---",
            "license: apache-2.0",
            "library_name: nrg-sampler",
            "---",
            "",
            "# shapes: a pixel judge",
            "",
            "Grades finished clips of the world of shapes on visual quality (VQ), motion quality (MQ) and text",
            "alignment (TA), from pixels and prompt. For grading and for choosing the best of several clips, never",
            "for guidance.",
            "",
            "- **Network.** A convolutional frame encoder with temporal shift, a transformer over frames, and one",
            f"  over frames and words; {parameters:.1f} M parameters, nothing shared with the reward or the video",
            "  model.",
            "- **Data.** Rendered clips with graded faults and without, and samples of the pipeline, decoded;",
            "  compared by the oracle with other seeds and another annotator noise than the reward's; every clip",
            "  under several prompts, and the prompts of a clip with each other. In training it also named what a",
            "  clip shows (shape, colour, motion, background, size). Held-out combinations were not used.",
            f"- **Mean / standard deviation** of the raw grades over samples of the pipeline: {statistics}.",
            "- **Licence.** Apache-2.0.",
            "",
            "Held-out pairs ranked as the oracle ranks them, and as the latent reward does on nearly clean latents,",
            "in percent, oracle ties left out (`mixed`: clips of several prompts under one of them; `same`: samples",
            "of one prompt):",
            "",
            "| pairs | axis | as the oracle | as the reward | number |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "Faultless clips of held-out combinations that fit their own prompt better than one with another value of",
            "a single attribute, in percent:",
            "",
            "| attribute | right | clips |",
            "|---|---|---|",
            *by_attribute,
            "",
        ]
    )
