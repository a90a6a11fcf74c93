"""The container: headers and places that no reader may believe, in a folder of PEFT that is right otherwise."""

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from conformance.files.binary import safetensors, with_header
from conformance.files.corpus.made import IN, OUT, RANK, Case, Q, factors, key, peft, spoiled, wrong


def cases() -> Iterator[Case]:
    A, B = key(Q, "lora_A.weight"), key(Q, "lora_B.weight")
    arrays = dict(zip((A, B), factors("container"), strict=True))
    whole = safetensors(arrays)

    def changed(name: str, **fields: Any) -> bytes:
        return safetensors(arrays, change=lambda header: header[name].update(fields))

    one = peft("C-1", "a_length_that_looks_like_a_pickle", modules=(Q,))
    weights = one.files["adapter_model.safetensors"]
    length = struct.unpack("<Q", weights[:8])[0]
    padded = with_header(weights[8 : 8 + length].ljust(0x0480), weights[8 + length :])
    yield one._replace(files=one.files | {"adapter_model.safetensors": padded})
    yield spoiled("C-1", "empty", "FILE-002", b"")
    yield spoiled("C-1", "cut_off_in_the_header", "FILE-002", whole[:60])
    yield spoiled("C-1", "a_header_of_an_exabyte", "FILE-002", struct.pack("<Q", 1 << 60) + whole[8:])
    yield spoiled("C-1", "no_json", "FILE-003", with_header(b"{]"))
    yield spoiled("C-1", "a_list", "FILE-003", with_header(b"[]"))
    yield spoiled("C-1", "nested_deeply", "FILE-003", with_header(b'{"a":' * 100_000))
    yield spoiled("C-1", "a_tensor_that_is_a_number", "FILE-003", with_header(b'{"a": 3}'))
    yield spoiled("C-2", "cut_off_in_the_numbers", "FILE-004", whole[:-4])
    yield spoiled("C-2", "more_at_the_end", "FILE-004", whole + b"\0\0\0\0")
    yield spoiled("C-2", "overlapping", "FILE-004", changed(B, data_offsets=[96, 96 + OUT * RANK * 4]))
    yield spoiled("C-2", "offsets_turned_round", "FILE-004", changed(A, data_offsets=[192, 0]))
    yield spoiled("C-2", "negative_offsets", "FILE-003", changed(A, data_offsets=[-192, 0]))
    yield spoiled("C-2", "another_shape", "FILE-004", changed(A, shape=[RANK, IN + 1]))
    yield spoiled("C-2", "an_enormous_shape", "FILE-004", changed(A, shape=[1 << 40, 1 << 40]))
    yield spoiled("C-2", "a_negative_shape", "FILE-003", changed(A, shape=[-RANK, -IN]))
    yield spoiled("C-2", "a_shape_with_a_fraction", "FILE-003", changed(A, shape=[4.0, 12.0]))
    yield spoiled("C-6", "a_dtype_that_is_a_list", "FILE-008", changed(A, dtype=["F32"]))
    yield spoiled("C-2", "another_dtype", "FILE-004", changed(A, dtype="F64"))
    yield spoiled("C-6", "an_unknown_dtype", "FILE-008", changed(A, dtype="F128"))
    yield spoiled("C-3", "a_tensor_twice", "FILE-005", twice(whole, A, B))
    yield spoiled("C-5", "pickle", "FILE-007", b"\x80\x04\x95\x0b\0\0\0\0\0\0\0}\x94\x8c\x01a\x94K\x01s.")
    yield spoiled("C-5", "zip_of_torch_save", "FILE-007", b"PK\x03\x04" + b"\0" * 60)
    case = wrong("C-5", "only_a_pickle", "FILE-007")
    yield case._replace(files={"adapter_config.json": case.files["adapter_config.json"], "adapter_model.bin": b"\x80\x04}."})
    yield wrong("C-6", "factors_of_int8", "FILE-008", change=lambda arrays: arrays.update({A: np.ones((RANK, IN), np.int8)}))
    for name, value in (("nan", np.nan), ("infinity", -np.inf)):
        yield wrong("C-7", name, "FILE-009", change=lambda arrays, value=value: arrays[B].__setitem__((-1, -1), value))


def twice(whole: bytes, A: str, B: str) -> bytes:
    """The file with the name of A for both tensors."""
    length = struct.unpack("<Q", whole[:8])[0]
    return with_header(whole[8 : 8 + length].replace(B.encode(), A.encode()), whole[8 + length :])
