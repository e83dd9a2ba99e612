"""How many processes a machine may be asked for."""

from __future__ import annotations

import os

from mlm.errors import UserError

# Beyond a few a core they only take memory, 0.3 GB each, and hundreds take the machine down.
_PER_CORE, _ALWAYS = 4, 8


def check_processes(name: str, count: int, least: int = 0) -> None:
    """Refuse a number of processes that would choke this machine.

    Args:
        name: of the setting.
        count: processes asked for.
        least: how few there may be.

    Raises:
        UserError: ``count`` is below ``least``, or more than a few a core.
    """
    cores = os.cpu_count() or 1
    most = max(_ALWAYS, _PER_CORE * cores)
    if not least <= count <= most:
        raise UserError(
            f"{name}: {count} must lie between {least} and {most}; each is a process, and this "
            f"machine has {cores} cores"
        )
