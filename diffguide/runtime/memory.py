"""The allocator of the C library: memory that a training step frees is kept for the next one.

glibc gives the free end of its heap back to the system above a threshold that follows the largest block, here a few
megabytes. A training step then asks for its activations again page by page: 8 to 14 % of a float32 step of the default
network on one core. With thresholds of their own no number changes, and the process keeps its peak of memory until it ends.
"""

import ctypes
import os
import sys

__all__ = ["keep_freed_memory"]

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)
KEPT_BYTES = 2**31 - 1  # at the end of the heap, the largest value of a C int
MMAP_BYTES = 2**25  # blocks from this size on are the system's, as they are by default at most


def keep_freed_memory() -> bool:
    """Sets the thresholds for this process; False where the C library has none, or the environment has set them."""
    if sys.platform != "linux" or any(name in os.environ for name in ("MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    return set_option is not None and bool(
        set_option(MMAP_THRESHOLD, MMAP_BYTES) and set_option(TRIM_THRESHOLD, KEPT_BYTES)
    )
