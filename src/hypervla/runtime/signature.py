"""Files that carry the sha256 of all their own bytes in a piece of JSON somewhere inside of them."""

from __future__ import annotations

import hashlib

UNSIGNED = "0" * 64
"""Stands in place of the file's own sha256 while that is computed."""
MARKS = (b'\\"sha256\\": \\"', b'"sha256": "', b"&quot;sha256&quot;: &quot;")
"""What comes before it: in JSON inside a JSON string (safetensors), in plain JSON (ONNX), in XML (OpenVINO)."""


def sign(unsigned: bytes) -> bytes:
    """The bytes with their sha256 in place of UNSIGNED."""
    place = _place(unsigned)
    assert place is not None
    return _filled(unsigned, place, hashlib.sha256(unsigned).hexdigest().encode())


def is_whole(data: bytes) -> bool:
    """Whether these are all the bytes that were signed, and no others."""
    place = _place(data)
    if place is None:
        return False
    unsigned = _filled(data, place, UNSIGNED.encode())
    return hashlib.sha256(unsigned).hexdigest().encode() == data[place : place + len(UNSIGNED)]


def _place(data: bytes) -> int | None:
    """Where the sha256 stands."""
    for mark in MARKS:
        found = data.rfind(mark)
        if found >= 0:
            return found + len(mark)
    return None


def _filled(data: bytes, place: int, digest: bytes) -> bytes:
    return data[:place] + digest + data[place + len(digest) :]
