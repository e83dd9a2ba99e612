"""How long a run is: steps, tokens or time, and how much of it is spent."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mlm.errors import UserError

_UNITS: dict[str, tuple[str, float]] = {
    "": ("steps", 1),
    "step": ("steps", 1),
    "steps": ("steps", 1),
    "token": ("tokens", 1),
    "tokens": ("tokens", 1),
    "s": ("seconds", 1),
    "sec": ("seconds", 1),
    "m": ("seconds", 60),
    "min": ("seconds", 60),
    "h": ("seconds", 3600),
    "d": ("seconds", 86_400),
}


@dataclass(frozen=True)
class Budget:
    """An amount of steps, tokens or seconds."""

    unit: str
    """`steps`, `tokens` or `seconds`."""
    amount: float
    """How many of them."""

    def __str__(self) -> str:
        return f"{self.amount:g} {self.unit}"


def parse_budget(text: str) -> Budget:
    """Read `480s`, `30min`, `1h`, `2e9tokens`, `2000steps` or a bare number of steps.

    Raises:
        UserError: none of these, or not above 0.

    >>> parse_budget("30min")
    Budget(unit='seconds', amount=1800.0)
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", str(text).lower())
    try:
        amount = float(match[1]) if match else 0.0
    except ValueError:
        amount = 0.0
    if match is None or match[2] not in _UNITS or not 0.0 < amount < 1e18:
        raise UserError(
            f"--budget {text!r}: write a number and a unit, as in 480s, 30min, 1h, 2e9tokens "
            "or 2000steps"
        )
    unit, factor = _UNITS[match[2]]
    return Budget(unit, amount * factor)


def check_budget(budget: Budget, tokens: int, seconds: float) -> None:
    """Refuse a budget that is over before its first step is.

    Args:
        budget: of the run.
        tokens: of the smallest step.
        seconds: that it takes at least; nan where that is not known.

    Raises:
        UserError: so.
    """
    least = {"steps": 1.0, "tokens": float(tokens), "seconds": seconds}[budget.unit]
    if budget.amount < least:
        raise UserError(
            f"--budget: {budget} are too short for one step, which takes {least:,.4g} "
            f"{budget.unit} or more; give more, or lower --data.batch_size"
        )


def check_rest(budget: Budget, counting: float) -> None:
    """Refuse a time that was over when the words' start had been counted.

    Args:
        budget: of the run.
        counting: the seconds that it took.

    Raises:
        UserError: so.
    """
    if budget.unit == "seconds" and budget.amount <= counting:
        raise UserError(
            f"--budget: {budget} are too short, as counting where words are to begin took "
            f"{counting:.3g} of them; give more, or --objective.start_at_cooccurrences false"
        )


@dataclass
class Spent:
    """What a run has used so far; saved with a checkpoint."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    before: float = 0.0
    """The seconds among them that no schedule follows: before the first step, and compiling it."""

    def progress(self, budget: Budget) -> float:
        """The share of ``budget`` spent in the middle of the coming step, in [0, 1].

        The middle, so that the last step learns something; its length is taken to be the mean of
        the steps so far, and 0 where there are none and the budget is no number of steps.
        """
        used, amount = float(getattr(self, budget.unit)), budget.amount
        if budget.unit == "seconds":
            used, amount = used - self.before, max(amount - self.before, 1e-9)
        half_step = used / self.steps / 2 if self.steps else 0.0
        if budget.unit == "steps":
            half_step = 0.5
        return min(1.0, (used + half_step) / amount)

    def is_over(self, budget: Budget) -> bool:
        """Whether the run ends here: where one more step would end further from the budget."""
        return self.steps > 0 and self.progress(budget) >= 1.0
