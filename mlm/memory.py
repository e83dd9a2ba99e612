"""Memory: what glibc does with what is freed, and how to tell that there is too little."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress

# Parameters of glibc's mallopt(3) and what they are set to.
_SETTINGS = {
    -4: 0,  # M_MMAP_MAX: no block of its own mapping, which goes back to the system when freed
    -1: -1,  # M_TRIM_THRESHOLD: never give the top of the heap back
    -2: 64 << 20,  # M_TOP_PAD: grow by 64 MiB more than asked for, to grow seldom
}
_TUNABLES = "GLIBC_TUNABLES"  # see "Memory Allocation Tunables" in glibc's manual
_CACHED_BLOCKS = "glibc.malloc.tcache_count"
_NO_MEMORY = re.compile("not enough memory|can't allocate memory|out of memory", re.IGNORECASE)


def ran_out(error: BaseException) -> bool:
    """Whether ``error`` says that memory was too small, on whatever device."""
    import torch  # most of the command line does without

    text = f"{error} {error.__cause__ or ''}"
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or bool(_NO_MEMORY.search(text))


def keep_freed_memory() -> bool:
    """Tell the C allocator to reuse what is freed instead of returning it to the system.

    A step of training, or of answering, frees and asks for the same hundreds of megabytes again. By
    default glibc maps each large block anew, and the system clears every page of it on first touch:
    on two CPU cores that was measured to cost more than half of the time. The price is that the
    process stays as large as its largest moment, so `mlm prepare`, which reads and writes, does
    without.

    Returns:
        Whether it took effect; only Linux with glibc has the switch.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library, such as musl
        return False
    return all(mallopt(parameter, value) == 1 for parameter, value in _SETTINGS.items())


def without_small_caches(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which glibc caches no small blocks, or what it says of them already.

    torch asks for aligned blocks. For one of those glibc 2.36 takes a larger one and frees the few
    bytes before and after it, which its cache gives to whatever small object is made next. So the
    large block, once it is freed, is a few bytes too small for the next step's same request, and
    the heap grows by some megabytes at every step of a training, for as long as that goes on
    (benchmarks/LOG.md, "A heap that grew with every step").

    >>> without_small_caches({"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"})
    {'GLIBC_TUNABLES': 'glibc.malloc.arena_max=1:glibc.malloc.tcache_count=0'}
    """
    others = environment.get(_TUNABLES, "")
    if _CACHED_BLOCKS in others:
        return dict(environment)
    setting = f"{_CACHED_BLOCKS}=0"
    return {**environment, _TUNABLES: f"{others}:{setting}" if others else setting}


def restart_without_small_caches() -> None:
    """Become the same program with the same arguments in `without_small_caches`, unless it is so.

    glibc reads its tunables when a program starts, and this must come before anything is done. The
    process stays the same one to whoever started it; where it cannot begin anew, it goes on as it
    is. Text is cut into tokens a quarter slower afterwards, so only trainings are worth it.
    """
    environment = without_small_caches(os.environ)
    glibc = "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", {})
    if glibc and environment != dict(os.environ):
        with suppress(OSError):
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
