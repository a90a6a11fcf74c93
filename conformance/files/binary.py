"""Writes the bytes of safetensors and GGUF files. container.py and gguf.py read them, and share no code with this."""

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from conformance.files.container import DTYPES

NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
Arrays = dict[str, np.ndarray]


def safetensors(
    arrays: Arrays, metadata: dict[str, str] | None = None, change: Callable[[dict], Any] = lambda header: None
) -> bytes:
    """A file of these arrays. `change` may spoil its header."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    body = b""
    for name, array in arrays.items():
        numbers = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [len(body), len(body) + len(numbers)],
        }
        body += numbers
    change(header)
    return with_header(json.dumps(header, separators=(",", ":")).encode(), body)


def with_header(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def gguf(keys: dict[str, Any], arrays: Arrays) -> bytes:
    """A GGUF file of these arrays, whose keys are strings and float32 numbers."""

    def text(words: str) -> bytes:
        return struct.pack("<Q", len(words.encode())) + words.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, len(arrays), len(keys))
    for key, value in keys.items():
        head += text(key) + (struct.pack("<I", 8) + text(value) if isinstance(value, str) else struct.pack("<If", 6, value))
    body = b""
    for name, array in arrays.items():
        kind = {"F32": 0, "F16": 1, "BF16": 30, "I8": 24}[NAMES[array.dtype]]
        head += (
            text(name)
            + struct.pack(f"<I{array.ndim}Q", array.ndim, *reversed(array.shape))
            + struct.pack("<IQ", kind, len(body))
        )
        body += array.tobytes() + b"\0" * (-array.nbytes % 32)
    return head + b"\0" * (-len(head) % 32) + body
