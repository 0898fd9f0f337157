"""More like this, less like this: from the marks of a visitor to the next candidates."""

from __future__ import annotations

import torch

from nrg_sampler.lookahead import Lookahead, Looks
from nrg_sampler.runs.ahead import Ahead
from nrg_sampler.ui.jobs import consecutive_seeds
from nrg_sampler.ui.sampling import Part
from nrg_sampler.ui.visits import Candidates

PULL = 6.0  # with more, the next clips are near copies of a marked one: docs/evidence/lookahead.md


def marked_parts(shown: Candidates, candidates: float, pull: float) -> list[Part]:
    """Return clips of the next seeds, pulled toward those that were marked for more and away from those for less.

    Args:
        shown: The clips on the page and their marks.
        candidates: How many are wanted.
        pull: How strongly.

    Raises:
        ValueError: If nothing is marked, all clips are marked alike, or there are too few or too many candidates.
    """
    seeds = sorted(shown.latents)
    scores = [float(shown.marks.get(seed, 0)) for seed in seeds]
    if not seeds or not any(scores):
        raise ValueError(
            "Expected a mark, but there is none; press *More like this* or *Less like this* under a clip."
        )
    if len(set(scores)) == 1:
        raise ValueError("Expected marks that tell clips apart, but all are marked alike; leave one out.")
    looks = Looks(torch.stack([shown.latents[seed] for seed in seeds], dim=1), torch.tensor([scores]))
    ahead = Ahead(None, Lookahead.sharp(scale=pull), tuple(seeds), tuple(scores), shown.ahead)
    following = shown.settings[seeds[-1]].with_seed(seeds[-1] + 1)
    return [Part(part.settings, ahead=ahead, looks=looks) for part in consecutive_seeds(following, candidates)]
