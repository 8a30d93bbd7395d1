"""The reasoning blob: one user's reasoning matrix H as bytes.

    offset  size  field
    0       4     magic  b"SCTH"
    4       1     version (1)
    5       1     layout  (0 projected, 1 raw)
    6       1     dtype   (1 float16, 2 float32, 3 int8)
    7       1     K, reasoning steps
    8       2     D, width of a step
    10      2     history length the reasoning was written from
    12      8     release   (blake2b-64 of the release id)
    20      8     user      (blake2b-64 of the user id)
    28      8     written   (seconds since the epoch)
    36      4     CRC-32 of everything else
    40            K * D values, row-major, little-endian

For int8 the values are preceded by K scales in float32, one for each row: value = scale * byte, with bytes from -127
to 127 and the largest magnitude of the row at 127. A row of zeros has the scale 0.

The header says whose vector it is and which release it belongs to, so that a blob that is stale, foreign
or damaged is a counted miss and never another user's reasoning.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

MAGIC = b"SCTH"
VERSION = 1
_HEAD = struct.Struct("<4sBBBBHH8s8sQ")
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEAD.size + _CRC.size


class Layout(IntEnum):
    """What a row holds: `projected` what the model makes of a step (eq. 2), or `raw` its embedding e_j (D wide)."""

    projected = 0
    raw = 1


class BlobMiss(StrEnum):
    """Why a stored blob could not be used."""

    absent = "absent"
    truncated = "truncated"
    foreign = "foreign"  # not a reasoning blob, or one of an unknown version
    checksum = "checksum"
    release = "release"
    user = "user"
    shape = "shape"  # layout, dtype, K or D differ from the release's


Dtype = Literal["float16", "float32", "int8"]

_DTYPES: dict[int, np.dtype[np.float16] | np.dtype[np.float32] | np.dtype[np.int8]] = {
    1: np.dtype("<f2"),
    2: np.dtype("<f4"),
    3: np.dtype("i1"),
}
_DTYPE_CODES: dict[Dtype, int] = {"float16": 1, "float32": 2, "int8": 3}
_INT8 = 3
_SCALE = np.dtype("<f4")


@dataclass(frozen=True, slots=True)
class BlobFormat:
    """The format that every blob of one release shares."""

    release_id: str
    layout: Layout
    dtype: Dtype
    steps: int  # K
    width: int  # D of a stored row


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A decoded blob. `matrix` is float32 [K, D]; `written` is in seconds since the epoch."""

    matrix: NDArray[np.float32]
    history_length: int
    written: int


def digest(text: str) -> bytes:
    """8 bytes that stand for a release id or user id inside a header."""
    # A lone surrogate may reach us from a log or a data file; it must yield a digest, not an exception.
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def encode(
    matrix: NDArray[np.floating],
    fmt: BlobFormat,
    user_id: str,
    *,
    history_length: int,
    written: int,
) -> bytes:
    """Pack H [K, D] of `user_id`.

    Raises ValueError if the matrix is not [K, D] or holds a value that is not finite in the stored dtype.
    """
    code = _DTYPE_CODES[fmt.dtype]
    if matrix.shape != (fmt.steps, fmt.width):
        raise ValueError(
            f"reasoning of user {user_id!r} is {list(matrix.shape)}, the release stores "
            f"[{fmt.steps}, {fmt.width}]: rebuild the release with `scoter export`"
        )
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(matrix, dtype=_SCALE if code == _INT8 else _DTYPES[code])
    if not np.isfinite(values).all():
        raise ValueError(
            f"reasoning of user {user_id!r} is not finite as {fmt.dtype}: "
            "the step embeddings or the adapter have diverged"
        )
    head = _HEAD.pack(
        MAGIC,
        VERSION,
        fmt.layout,
        code,
        fmt.steps,
        fmt.width,
        min(history_length, 0xFFFF),
        digest(fmt.release_id),
        digest(user_id),
        written,
    )
    payload = _quantized(values) if code == _INT8 else values.tobytes()
    return head + _CRC.pack(zlib.crc32(payload, zlib.crc32(head))) + payload


def decode(blob: bytes | None, fmt: BlobFormat, user_id: str) -> Reasoning | BlobMiss:
    """Unpack the blob stored for `user_id`, or say why it is a miss. Never raises."""
    if blob is None:
        return BlobMiss.absent
    if len(blob) < HEADER_BYTES:
        return BlobMiss.truncated
    magic, version, layout, code, steps, width, history, release, user, written = _HEAD.unpack_from(blob)
    if magic != MAGIC or version != VERSION or code not in _DTYPES:
        return BlobMiss.foreign
    dtype = _DTYPES[code]
    scales = steps * _SCALE.itemsize if code == _INT8 else 0
    if len(blob) != HEADER_BYTES + scales + steps * width * dtype.itemsize:
        return BlobMiss.truncated
    view = memoryview(blob)
    (crc,) = _CRC.unpack_from(blob, _HEAD.size)
    if zlib.crc32(view[HEADER_BYTES:], zlib.crc32(view[: _HEAD.size])) != crc:
        return BlobMiss.checksum
    if release != digest(fmt.release_id):
        return BlobMiss.release
    if user != digest(user_id):
        return BlobMiss.user
    if (layout, code, steps, width) != (fmt.layout, _DTYPE_CODES[fmt.dtype], fmt.steps, fmt.width):
        return BlobMiss.shape
    values = np.frombuffer(blob, dtype=dtype, offset=HEADER_BYTES + scales).astype(np.float32).reshape(steps, width)
    if scales:
        values *= np.frombuffer(blob, dtype=_SCALE, count=steps, offset=HEADER_BYTES)[:, None]
    return Reasoning(values, history, written)


def _quantized(matrix: NDArray[Any]) -> bytes:
    """Scales and bytes of a finite matrix [K, D]."""
    scales = (np.abs(matrix).max(axis=1) / 127).astype(_SCALE)  # [K]
    # A row of zeros, or of numbers too small for a scale, is a row of zeros.
    inverse = np.divide(1, scales, out=np.zeros_like(scales, np.float64), where=scales > 0, dtype=np.float64)
    values = np.clip(np.rint(matrix * inverse[:, None]), -127, 127).astype(np.int8)
    packed: bytes = scales.tobytes() + values.tobytes()
    return packed
