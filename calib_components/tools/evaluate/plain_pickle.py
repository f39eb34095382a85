"""Reading a pickle of plain values and numeric arrays, such as the properties that nnU-Net saves, without running it.

A pickle is a program. This reader gives it nothing to call but what is in this module: stand-ins for numpy's dtype and
array, which copy numbers out of bytes. numpy's own are no choice: their state, if forged, makes them read any memory.
"""

from __future__ import annotations

import codecs
import io
import math
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

__all__ = ["ALLOWED", "load_plain", "plain"]

NUMBERS = re.compile("[?bBhHiIlLqQefd]|[biuf][1248]")  # codes of numeric dtypes


class _DType:
    """Stands for `numpy.dtype`: a code of a number, and an order of its bytes."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not (isinstance(code, str) and NUMBERS.fullmatch(code)):
            raise pickle.UnpicklingError(f"dtype {code!r:.40}, which is no number")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"byte order {order!r:.40}")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands for `numpy.ndarray` while it is read; the numbers are in `values`."""

    def __init__(self, *_: Any) -> None:
        self.values = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        self.values = _numbers(dtype, data, shape, "F" if is_fortran else "C")


def _numbers(dtype: Any, data: Any, shape: Any = (), order: Any = "C") -> np.ndarray:
    if not isinstance(dtype, _DType) or not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError("an array of something else than numbers")
    if len(data) != math.prod(shape) * dtype.dtype.itemsize:
        raise pickle.UnpicklingError(f"an array of shape {shape} in {len(data)} bytes")
    return np.frombuffer(bytes(data), dtype.dtype).reshape(shape, order=order)


def _scalar(dtype: Any, data: Any) -> Any:
    return _numbers(dtype, data).item()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.values = _numbers(dtype, data, shape, order)
    return array


def _encode(text: Any, *_: Any) -> bytes:
    """How pickles of old protocols hold bytes."""
    return codecs.encode(str(text), "latin1")


def _no_bytes() -> bytes:
    """How pickles of old protocols hold no bytes."""
    return b""


# What a pickle may name, and what stands for it; `plain` then replaces the stand-ins.
ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _Array,
}
for _core in ("core", "_core"):
    ALLOWED[f"numpy.{_core}.multiarray", "_reconstruct"] = _Array
    ALLOWED[f"numpy.{_core}.multiarray", "scalar"] = _scalar
    ALLOWED[f"numpy.{_core}.numeric", "_frombuffer"] = _from_buffer


class _Reader(pickle._Unpickler):  # the one in Python, which is memory-safe
    read: Callable[[int], bytes]  # these two are set when it loads
    append: Callable[[Any], None]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name}, which is no plain value; it was not loaded")
        return ALLOWED[module, name]

    def load_bytearray8(self) -> None:
        """Python's own reserves as much memory as the pickle says, whatever it holds."""
        (size,) = struct.unpack("<Q", self.read(8))
        content = self.read(size)
        if len(content) < size:
            raise pickle.UnpicklingError("pickle data was truncated")
        self.append(bytearray(content))

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BYTEARRAY8[0]: load_bytearray8}


def load_plain(content: bytes) -> Any:
    """Read a pickle of numbers, texts, containers and numeric arrays.

    Raises:
        pickle.UnpicklingError: It holds something else; nothing of it was run. Other errors mean that it is broken.
    """
    return plain(_Reader(io.BytesIO(content)).load())


def plain(value: Any, known: dict[int, Any] | None = None) -> Any:
    """Replace the stand-ins by what they stand for.

    Args:
        value: What was read.
        known: Results by the identity of the containers that they are of, since a few of these can be in one another in
            more ways than memory holds.
    """
    known = {} if known is None else known
    if isinstance(value, _Array):
        return value.values
    if isinstance(value, dict | list | tuple) and id(value) not in known:
        if isinstance(value, dict):
            known[id(value)] = {plain(key, known): plain(entry, known) for key, entry in value.items()}
        else:
            known[id(value)] = type(value)(plain(entry, known) for entry in value)
    return known.get(id(value), value)
