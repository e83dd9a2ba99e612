"""Keeping freed memory in the process, so that large temporaries are not paged in each step."""

from __future__ import annotations

import ctypes
import sys

# Parameters of glibc's mallopt(3) and what they are set to.
_SETTINGS = {
    -4: 0,  # M_MMAP_MAX: no block of its own mapping, which goes back to the system when freed
    -1: -1,  # M_TRIM_THRESHOLD: never give the top of the heap back
    -2: 64 << 20,  # M_TOP_PAD: grow by 64 MiB more than asked for, to grow seldom
}


def keep_freed_memory() -> bool:
    """Tell the C allocator to reuse what is freed instead of returning it to the system.

    A step of training, or of answering, frees and asks for the same hundreds of megabytes again. By
    default glibc maps each large block anew, and the system clears every page of it on first touch:
    on two CPU cores that was measured to cost up to four fifths of the time. The price is that the
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
