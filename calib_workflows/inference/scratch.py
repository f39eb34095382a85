"""Tensors that may be larger than memory: in a temporary file, whose pages the operating system
holds as it can.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import weakref
from collections.abc import Sequence

import torch

from calib_components.errors import InputError

IN_MEMORY = 2**28  # bytes; tensors up to this size are ordinary ones
# By the address of their bytes
_files: weakref.WeakValueDictionary[int, mmap.mmap] = weakref.WeakValueDictionary()


def scratch(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return a tensor to be filled: in memory if it is small, else in a temporary file that goes
    with it.
    """
    size = math.prod(shape) * dtype.itemsize
    if size <= IN_MEMORY:
        return torch.empty(*shape, dtype=dtype, device="cpu")
    try:
        with tempfile.TemporaryFile() as file:
            if hasattr(os, "posix_fallocate"):
                # Without room, a later write would kill the process
                os.posix_fallocate(file.fileno(), 0, size)
            else:  # as on macOS
                file.truncate(size)
            pages = mmap.mmap(file.fileno(), size)
    except OSError as error:
        needed = f"{size / 2**20:.0f} MiB in {tempfile.gettempdir()}"
        raise InputError(
            f"A temporary file needs {needed}: {error.strerror}. Set TMPDIR to another folder."
        ) from error
    tensor = torch.frombuffer(pages, dtype=dtype).view(*shape)  # holds the pages
    _files[tensor.untyped_storage().data_ptr()] = pages
    return tensor


def release(tensor: torch.Tensor) -> None:
    """Free the memory of a tensor of `scratch`, or of a view of one; its values stay in the
    file.
    """
    pages = _files.get(tensor.untyped_storage().data_ptr())
    if pages is not None:
        pages.madvise(mmap.MADV_DONTNEED)
