"""What the tests of faults draw: little in `make test`, the whole sweep in `make faults`."""

import os
import random

FULL = os.environ.get("MLM_FAULTS") == "full"


def examples(small: int, full: int) -> int:
    """How many examples a property is tried on."""
    return full if FULL else small


def damaged(content: bytes, number: int):
    """One bit, or in every tenth case the rest from somewhere on, chosen at random."""
    draw = random.Random(number)
    while True:
        if draw.random() < 0.1:
            yield content[: draw.randrange(len(content))]
        else:
            copy = bytearray(content)
            copy[draw.randrange(len(copy))] ^= 1 << draw.randrange(8)
            yield bytes(copy)
