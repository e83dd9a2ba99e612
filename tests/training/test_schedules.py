import math

import pytest

from mlm.errors import UserError
from mlm.training.budget import Budget, Spent, parse_budget
from mlm.training.schedules import SCHEDULES, falling, learning_rate_factor


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_rises_to_the_peak_and_never_above(name):
    factors = [learning_rate_factor(name, i / 1000, 0.1, 0.3) for i in range(1001)]
    assert factors[0] == 0.0
    assert factors[50] == pytest.approx(0.5)
    assert max(factors) == pytest.approx(1.0)
    assert min(factors) >= 0.0
    assert factors[-1] == pytest.approx(1.0 if name == "constant" else 0.0, abs=1e-9)


def test_warmup_stable_decay_is_flat_then_one_minus_root():
    assert learning_rate_factor("wsd", 0.7, 0.1, 0.2) == 1.0
    assert learning_rate_factor("wsd", 0.85, 0.1, 0.2) == pytest.approx(1 - math.sqrt(0.25))
    assert learning_rate_factor("wsd", 0.85, 0.0, 0.2) == pytest.approx(1 - math.sqrt(0.25))


def test_linear_and_cosine_halfway():
    assert learning_rate_factor("linear", 0.5, 0.0, 0.0) == 0.5
    assert learning_rate_factor("cosine", 0.25, 0.0, 0.0) == pytest.approx(0.853553, abs=1e-6)


def test_masking_rate_falls_linearly():
    assert [falling(0.3, 0.15, p) for p in (0.0, 0.5, 1.0, 1.2)] == pytest.approx(
        [0.3, 0.225, 0.15, 0.15]
    )


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("480s", Budget("seconds", 480)),
        ("30min", Budget("seconds", 1800)),
        ("1.5h", Budget("seconds", 5400)),
        ("2e9tokens", Budget("tokens", 2e9)),
        ("2000 steps", Budget("steps", 2000)),
        ("2000", Budget("steps", 2000)),
    ],
)
def test_budgets_are_read(text, budget):
    assert parse_budget(text) == budget


def test_a_step_budget_is_met_exactly():
    budget, spent = Budget("steps", 5), Spent()
    taken = 0
    while not spent.is_over(budget):
        assert 0 < spent.progress(budget) < 1
        spent = Spent(spent.steps + 1)
        taken += 1
    assert taken == 5


def test_a_time_budget_ends_within_half_a_step():
    budget, spent = Budget("seconds", 10), Spent()
    while not spent.is_over(budget):
        spent = Spent(spent.steps + 1, 0, spent.seconds + 0.7)
    assert abs(spent.seconds - 10) <= 0.36


def test_what_went_by_before_the_first_step_is_spent_and_no_schedule_follows_it():
    budget, spent = Budget("seconds", 10), Spent(0, 0, 4.0, 4.0)
    assert spent.progress(budget) == 0
    assert Spent(10, 0, 7.0, 4.0).progress(budget) == pytest.approx((3 + 0.15) / 6)
    while not spent.is_over(budget):
        spent = Spent(spent.steps + 1, 0, spent.seconds + 0.7, 4.0)
    assert abs(spent.seconds - 10) <= 0.36
    late = Spent(1, 0, 12.5, 12.0)
    assert late.is_over(budget)
    assert Spent(10, 99, 7.0, 4.0).progress(Budget("steps", 20)) == pytest.approx(10.5 / 20)


@pytest.mark.parametrize("text", ["", "min", "-5s", "0s", "1e99s", "5 parsecs", "1.2.3s", "nan"])
def test_other_budgets_are_refused_in_one_line(text):
    with pytest.raises(UserError, match="30min") as caught:
        parse_budget(text)
    assert "\n" not in str(caught.value)
