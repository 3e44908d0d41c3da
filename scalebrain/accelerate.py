"""The only place that names a numba decorator, and C functions that kernels call."""

import ctypes
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

__all__ = ["inner_kernel", "inner_reduction", "kernel", "lz4_decoder", "read_only"]

F = TypeVar("F", bound=Callable[..., Any])
_compiling = threading.RLock()


def read_only(dtype: str, more: str, *, ndim: int = 1) -> Any:
    """Signature of a kernel whose first argument is an array that it does not write.

    Parameters
    ----------
    dtype
        Name of the numbers' type of the first argument, which is contiguous.
    more
        numba types of the other arguments, e.g. ``"int64, float32[::1]"``.
    ndim
        Dimensions of the first argument.

    Returns
    -------
    tuple
        Argument types for :func:`kernel`. An array that can be written is accepted too,
        while ``dtype[::1]`` refuses one that cannot.
    """
    first = numba.types.Array(getattr(numba.types, dtype), ndim, "C", readonly=True)
    return (first, *numba.core.sigutils.normalize_signature(f"void({more})")[0])


# Sums in another order than written let the processor add many numbers at once; NaN and
# infinity keep their meaning. The order, and with it the last bits of a sum, depends on the
# processor alone: not on chunks, threads or workers.
_REASSOCIATE = {"reassoc", "nsz", "contract"}


def kernel(*signatures: Any) -> Callable[[F], F]:
    """Compile a NumPy kernel for explicit `signatures`, without the GIL.

    Compilation happens at the first call, so importing a kernel costs nothing. The
    machine-code cache is off: a cache on a disk that workers share has crashed in the
    field. Kernels are never ``parallel=True``: Dask owns the threads.

    Parameters
    ----------
    *signatures
        numba signatures, e.g. ``"void(float32[::1], float64[::1])"``, or tuples of argument
        types, where a string cannot say it.

    Returns
    -------
    callable
        Decorator that replaces the function by its compiled twin.
    """

    def decorate(function: F) -> F:
        compiled: list[Any] = []

        def call(*args: Any) -> Any:
            if not compiled:
                with _compiling:
                    if not compiled:
                        compiled.append(
                            numba.njit(list(signatures), nogil=True, error_model="numpy")(function)
                        )
            return compiled[0](*args)

        call.__name__ = function.__name__
        call.__qualname__ = function.__qualname__
        call.__doc__ = function.__doc__
        call.__module__ = function.__module__
        return cast(F, call)

    return decorate


def inner_kernel(function: F) -> F:
    """Compile a function that only other kernels call."""
    return cast(F, numba.njit(nogil=True, error_model="numpy")(function))


def inner_reduction(function: F) -> F:
    """Compile a sum that only other kernels call, in the order that is fastest here."""
    return cast(F, numba.njit(nogil=True, error_model="numpy", fastmath=_REASSOCIATE)(function))


def lz4_decoder() -> Any:
    """Find the decoder of LZ4 that numcodecs has, as a function that kernels can call.

    Returns
    -------
    function
        ``LZ4_decompress_safe(source, target, source bytes, target bytes)``, which looks at all
        bounds and returns how many bytes it wrote, negative for damaged ones; None where the
        library does not show it.
    """
    import numcodecs.lz4

    try:
        function = ctypes.CDLL(numcodecs.lz4.__file__).LZ4_decompress_safe
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
    function.restype = ctypes.c_int
    return function
