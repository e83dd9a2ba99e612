"""Learning rates over a run: pure functions of the share of the budget spent.

Each takes progress in [0, 1] and gives a factor in [0, 1] for the peak learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable

# (progress after warmup in [0, 1], share of it that cools down) → factor
Shape = Callable[[float, float], float]


def _linear(progress: float, cooldown: float) -> float:
    return 1.0 - progress


def _cosine(progress: float, cooldown: float) -> float:
    # https://arxiv.org/abs/1608.03983
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _warmup_stable_decay(progress: float, cooldown: float) -> float:
    """Flat, then 1 − √ over the last ``cooldown`` (https://arxiv.org/abs/2405.18392)."""
    into = progress - (1.0 - cooldown)
    return 1.0 if into <= 0.0 else 1.0 - math.sqrt(into / cooldown)


def _warmup_stable_linear(progress: float, cooldown: float) -> float:
    """Flat, then a line to 0 over the last ``cooldown``."""
    into = progress - (1.0 - cooldown)
    return 1.0 if into <= 0.0 else 1.0 - into / cooldown


def _constant(progress: float, cooldown: float) -> float:
    return 1.0


SCHEDULES: dict[str, Shape] = {
    "linear": _linear,
    "one_cycle": _linear,  # up for as long as down, see `OptimizerOptions.warmup`
    "cosine": _cosine,
    "wsd": _warmup_stable_decay,
    "wsd_linear": _warmup_stable_linear,
    "constant": _constant,
}
# Those that have a phase of cooling down.
COOLING = ("wsd", "wsd_linear")


def learning_rate_factor(name: str, progress: float, warmup: float, cooldown: float) -> float:
    """What the peak learning rate is multiplied by.

    Args:
        name: a key of `SCHEDULES`.
        progress: share of the budget spent, in [0, 1].
        warmup: share of the budget over which the rate rises linearly from 0.
        cooldown: share of the budget over which `wsd` or `wsd_linear` falls; others ignore it.

    >>> learning_rate_factor("linear", 0.55, warmup=0.1, cooldown=0.0)
    0.5
    """
    if progress < warmup:
        return progress / warmup
    rest = 1.0 - warmup
    shape = SCHEDULES[name]
    return shape(min(1.0, (progress - warmup) / rest), cooldown / rest)


def falling(start: float, end: float, progress: float) -> float:
    """A value that goes linearly from ``start`` to ``end`` over the run: the masking rate."""
    return start + (end - start) * min(1.0, progress)
