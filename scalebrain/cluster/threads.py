"""One thread a task: Dask owns the cores."""

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["WORKER_ENVIRONMENT", "one_thread_each"]

#: glibc returns large blocks to the system at once, and each scan pays for them anew;
#: workers keep them instead. A worker that has too little memory is to die, which is told:
#: one that pauses waits for ever, since none of what it holds can be spilled.
WORKER_ENVIRONMENT = {
    "DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE": "False",
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TOP_PAD_": "268435456",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}

_entering = threading.Lock()
#: One entry for each thread inside `one_thread_each`; the first holds what to restore.
_inside: list[Any] = []


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Keep BLAS and torch from threads of their own while a block is computed.

    Dask runs one block a core. What starts threads within a block waits for cores that the other
    blocks have: many times slower than one thread, and sums in an order that depends on the
    machine. Several threads may be inside at once: the last one out restores the limit of BLAS,
    that of torch is each thread's own.
    """
    from threadpoolctl import OpenBLASController, threadpool_limits

    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch is not None else 1
    # Only the thread that limits OpenBLAS may restore it, unless it is said to be done.
    with _entering:
        if not _inside:
            OpenBLASController.clear_controlling_thread(force=True)
        _inside.append(None if _inside else threadpool_limits(1, "blas"))
    if torch is not None:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if torch is not None:
            torch.set_num_threads(threads)
        with _entering:
            limit = _inside.pop()  # the first entry is the last to go
            if limit is not None:
                OpenBLASController.clear_controlling_thread(force=True)
                limit.restore_original_limits()
                OpenBLASController.clear_controlling_thread(force=True)
