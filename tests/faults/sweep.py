"""How much the tests of faults draw: little in `make test`, the whole sweep in `make faults`."""

import os

FULL = os.environ.get("MLM_FAULTS") == "full"


def examples(small: int, full: int) -> int:
    """How many examples a property is tried on."""
    return full if FULL else small
