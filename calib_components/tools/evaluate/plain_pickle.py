"""Pickles of plain values and numeric arrays, such as the properties that nnU-Net saves, without running code."""

from __future__ import annotations

import io
import pickle
from typing import Any

__all__ = ["PLAIN", "load_plain"]

# A pickle names what it calls. Numbers, texts and containers name nothing; arrays name these.
PLAIN = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    ("__builtin__", "bytes"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PLAIN:
            raise pickle.UnpicklingError(f"{module}.{name}, which is no plain value; it was not loaded")
        return super().find_class(module, name)


def load_plain(content: bytes) -> Any:
    """Read a pickle of numbers, texts, containers and numeric arrays.

    Raises:
        pickle.UnpicklingError: It names something else; nothing was run. Other errors mean that it is broken.
    """
    return _Reader(io.BytesIO(content)).load()
