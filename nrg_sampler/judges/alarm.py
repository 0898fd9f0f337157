"""The alarm for reward hacking: the reward that guides rises while judges that do not guide fall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

TARGET = "reward"  # what the guiding reward is called among judges
RISE, FALL = 0.05, 0.01  # changes below these are chance: of the target in its deviations, of a judge in its own unit


def hacking_alarm(changes: Mapping[str, Mapping[str, float]], axes: Sequence[str]) -> str | None:
    """Say so if the reward that guided rose while a judge that did not guide fell, on average over the guided axes.

    Args:
        changes: Guided minus unguided, by judge and axis; ``"reward"`` is the one that guided.
        axes: The axes with a weight.

    Returns:
        One sentence, or ``None`` if there is nothing to say.
    """

    def mean(judge: str) -> float:
        values = [changes[judge][axis] for axis in axes if axis in changes[judge]]
        return sum(values) / len(values) if values else 0.0

    fallen = [
        f"the {judge} fell by {-mean(judge):.2f}" for judge in changes if judge != TARGET and mean(judge) < -FALL
    ]
    if TARGET not in changes or mean(TARGET) < RISE or not fallen:
        return None
    return (
        f"The reward that guided rose by {mean(TARGET):.2f} on {', '.join(axes)} while {' and '.join(fallen)}: the "
        "guidance may be pleasing the reward alone; lower the scale, or weigh or floor another axis."
    )
