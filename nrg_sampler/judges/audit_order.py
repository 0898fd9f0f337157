"""Whether the oracle orders faulty clips as FLIP and SSIM do, which are given the clean clip it has to guess.

Example:
  python -m nrg_sampler.judges.audit_order --pairs 200
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable

import torch
from torch import Tensor

from nrg_sampler.shapes.changes import blur, compressed, fringed, noise, ragged
from nrg_sampler.shapes.oracle import measure
from nrg_sampler.shapes.render import draw, render
from nrg_sampler.shapes.scenes import sample_prompt, sample_scene

FAULTS: dict[str, tuple[Callable[[Tensor, float], Tensor], float, float]] = {
    "blur": (blur, 0.5, 3.0),
    "H.264": (lambda clips, crf: compressed(clips, round(crf)), 28, 48),
    "noise": (noise, 0.02, 0.15),
    "ragged": (ragged, 0.5, 3.0),
    "fringes": (fringed, 0.1, 0.6),
}


def flip_distance(clean: Tensor, clip: Tensor) -> float:
    """Mean FLIP over the frames of two clips ``(3, T, H, W)``, at its own usual viewing distance."""
    import flip_evaluator

    pairs = zip(*(value.permute(1, 2, 3, 0).contiguous().numpy() for value in (clean, clip)), strict=True)
    return float(sum(flip_evaluator.evaluate(*pair, "LDR", applyMagma=False)[1] for pair in pairs) / clean.shape[1])


def ssim(clean: Tensor, clip: Tensor) -> float:
    """Mean structural similarity over the frames of two clips ``(3, T, H, W)`` (Wang et al., 2004)."""
    from skimage.metrics import structural_similarity

    pairs = zip(*(value.transpose(0, 1).numpy() for value in (clean, clip)), strict=True)
    scores = [
        structural_similarity(*pair, channel_axis=0, data_range=1.0, gaussian_weights=True, sigma=1.5)
        for pair in pairs
    ]
    return float(sum(scores) / len(scores))


def agreements(pairs: int, seed: int = 0) -> dict[str, list[bool]]:
    """Compare pairs of faulty copies of one clean clip, each with a fault and a strength drawn at random.

    Returns:
        For each two of ``oracle``, ``FLIP`` and ``SSIM``, pair by pair, whether they prefer the same copy.
    """
    rng = random.Random(seed)
    same: dict[str, list[bool]] = {"oracle and FLIP": [], "oracle and SSIM": [], "FLIP and SSIM": []}
    for _ in range(pairs):
        clean = render(draw([sample_scene(sample_prompt(rng, "validation"), rng)]))
        copies = []
        for _ in range(2):
            fault, weakest, strongest = rng.choice(list(FAULTS.values()))
            copies.append(fault(clean, rng.uniform(weakest, strongest)).clamp(0, 1))
        oracle, flip, similarity = (
            grades[0] > grades[1]
            for grades in (
                measure(torch.cat(copies)).visual_quality.tolist(),
                [-flip_distance(clean[0], copy[0]) for copy in copies],
                [ssim(clean[0], copy[0]) for copy in copies],
            )
        )
        same["oracle and FLIP"].append(oracle == flip)
        same["oracle and SSIM"].append(oracle == similarity)
        same["FLIP and SSIM"].append(flip == similarity)
    return same


def main() -> None:
    """Print how often two measures agree."""
    from scipy.stats import binomtest

    parser = argparse.ArgumentParser(
        prog="python -m nrg_sampler.judges.audit_order",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pairs", type=int, default=200)
    print("| measures | same order | 95 % |\n|---|---|---|")
    for name, same in agreements(parser.parse_args().pairs).items():
        interval = binomtest(sum(same), len(same)).proportion_ci(method="wilson")
        share = 100 * sum(same) / len(same)
        print(f"| {name} | {share:.1f} | [{100 * interval.low:.1f}, {100 * interval.high:.1f}] |")


if __name__ == "__main__":
    main()
