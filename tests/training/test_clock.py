"""The clock repeats what it had said."""

import pytest

from mlm.errors import UserError
from mlm.training.clock import Clock


def test_readings_are_repeated_after_the_step_that_a_run_goes_on_from(tmp_path):
    path = tmp_path / "run" / "clock.txt"
    clock = Clock(path)
    clock.start(0, 0.0)
    said = {step: clock.read(step) for step in (1, 2, 3)}
    again = Clock(path)
    again.start(1, said[1])
    assert [again.read(2), again.read(3)] == [said[2], said[3]]
    assert again.read(4) >= said[3]
    fresh = Clock(path)  # killed before its first checkpoint
    fresh.start(0, 0.0)
    assert [fresh.read(step) for step in (2, 3)] == [said[2], said[3]]
    # What went by before the first step, counting, is as it was then, however long it takes now.
    slower = Clock(path)
    slower.start(0, 99.0)
    counted = slower.read(0)
    assert counted == pytest.approx(99.0, abs=5.0)
    again = Clock(path)
    again.start(0, 200.0)
    assert again.read(0) == counted
    fresh.close()
    assert list(path.parent.iterdir()) == []


def test_half_a_line_counts_for_nothing_and_damage_is_named(tmp_path):
    path = tmp_path / "clock.txt"
    path.write_text("1 0x1.8p+1\n2 0x1.8")
    clock = Clock(path)
    clock.start(0, 0.0)
    assert clock.read(1) == 3.0
    assert 3.0 <= clock.read(2) < 60
    path.write_text("one 2 three\n")
    with pytest.raises(UserError, match=r"clock.txt: damaged"):
        Clock(path).start(0, 0.0)
