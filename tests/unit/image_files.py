"""Files of images, as MNIST has them."""

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray


def idx(values: NDArray[Any]) -> bytes:
    """The bytes of an idx file of unsigned bytes."""
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(np.uint8).tobytes()
