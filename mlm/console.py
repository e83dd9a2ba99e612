"""What is said to the person at the terminal."""

import sys


def say(message: str) -> None:
    """One line on stderr."""
    print("mlm:", " ".join(message.split()), file=sys.stderr, flush=True)
