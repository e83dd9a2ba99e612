"""What is said to the person at the terminal."""

import sys


def say(message: str) -> None:
    """One line on stderr, written at once, so that those of several ranks do not mix."""
    sys.stderr.write(f"mlm: {' '.join(message.split())}\n")
    sys.stderr.flush()


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(75), duration(5400)
    ('1 min 15 s', '1 h 30 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
