"""The openpi protocol's messages as bytes: msgpack maps with NumPy arrays, read under a closed schema.

Frames, keys and the array codec are those of openpi-client 0.1.2, so that an unmodified one can be the other end. What
comes in is checked before anything is made of it: kinds of numbers, sizes, names. Imports no PyTorch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hypervla.contracts import ActionChunk, Observation, UserError
from hypervla.embodiment import Embodiment

MOST_BYTES = 64 * 2**20
"""Of one message."""
MOST_DIMENSIONS = 8
KINDS = "biuf"
"""NumPy's letters for the numbers that may travel: booleans, integers and floats. Never objects."""
DTYPE = re.compile("[<>|=]?[a-zA-Z?][0-9]{0,2}")
"""How a dtype is written. NumPy reads more than that: lists, fields, whole expressions."""
PROMPT, STATE, EPISODE = "prompt", "observation/state", "episode_id"
PREFIX = "observation/"
ARRAY, SCALAR = b"__ndarray__", b"__npgeneric__"


class WireError(UserError):
    """A message that is none of this protocol's."""


@dataclass(frozen=True)
class Request:
    """One observation, and what the robot is asked to do."""

    observation: Observation
    prompt: str
    episode: str | None = None
    """A client may name its episodes; another name is another episode."""


def pack(message: Mapping[str, Any]) -> bytes:
    """A message as bytes."""
    import msgpack

    packed = msgpack.packb(message, default=_encode)
    assert packed is not None
    return packed


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        _check_dtype(value.dtype)
        return {ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        _check_dtype(value.dtype)
        return {SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}
    raise WireError(f"A message holds numbers, texts and arrays, but {type(value).__name__} came.")


def unpack(data: bytes | str) -> dict[str, Any]:
    """The message in these bytes; arrays are read-only views of them. Raises WireError for anything else."""
    import msgpack

    if not isinstance(data, bytes):
        raise WireError("A message is binary msgpack, but text came.")
    if len(data) > MOST_BYTES:
        raise WireError(f"A message has at most {MOST_BYTES:,} bytes, but {len(data):,} came.")
    try:
        message = msgpack.unpackb(data, object_hook=_decode, strict_map_key=True)
    except WireError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"The message is no msgpack map with names ({error or type(error).__name__}).") from error
    if not isinstance(message, dict) or not all(isinstance(name, str) for name in message):
        raise WireError("A message is a map with names, but something else came.")
    return message


def _decode(pairs: dict[Any, Any]) -> Any:
    if ARRAY in pairs:
        return _array(pairs)
    if SCALAR in pairs:
        return _dtype(pairs).type(pairs.get(b"data"))
    return pairs


def _array(pairs: Mapping[Any, Any]) -> np.ndarray:
    data, shape, dtype = pairs.get(b"data"), pairs.get(b"shape"), _dtype(pairs)
    if not isinstance(data, bytes) or not isinstance(shape, list | tuple) or len(shape) > MOST_DIMENSIONS:
        raise WireError("An array comes as bytes, with a shape of at most eight dimensions.")
    if not all(type(side) is int and side >= 0 for side in shape):
        raise WireError(f"An array's shape is of whole numbers, but {shape} came.")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise WireError(f"An array of {dtype} and shape {tuple(shape)} does not have {len(data)} bytes.")
    return np.frombuffer(data, dtype).reshape(shape)


def _dtype(pairs: Mapping[Any, Any]) -> np.dtype:
    name = pairs.get(b"dtype")
    try:
        dtype = np.dtype(name) if isinstance(name, str) and DTYPE.fullmatch(name) else None
    except TypeError:
        dtype = None
    if dtype is None:
        raise WireError(f"An array's dtype is a short text like '<f4', but {name!r} came.")
    _check_dtype(dtype)
    return dtype


def _check_dtype(dtype: np.dtype) -> None:
    if dtype.kind not in KINDS:
        raise WireError(f"Arrays are of booleans, integers or floats, but {dtype} came.")


def encode_request(request: Request) -> dict[str, Any]:
    """As a client sends it."""
    message: dict[str, Any] = {PREFIX + name: image for name, image in request.observation.images.items()}
    message[PROMPT] = request.prompt
    if request.observation.proprio is not None:
        message[STATE] = request.observation.proprio
    return message if request.episode is None else message | {EPISODE: request.episode}


def decode_request(message: Mapping[str, Any], embodiment: Embodiment) -> Request:
    """What a client asks, for this robot. Raises WireError for a name that is none, or something missing; what the
    robot cannot have seen is found out by whoever acts on it."""
    cameras = {PREFIX + camera.name: camera.name for camera in embodiment.cameras}
    known = {*cameras, PROMPT, STATE, EPISODE}
    if strange := sorted(set(message) - known):
        raise WireError(
            f"There is no '{strange[0]}' in a request for {embodiment.name}, only {', '.join(sorted(known))}."
        )
    prompt, state, episode = message.get(PROMPT), message.get(STATE), message.get(EPISODE)
    if not isinstance(prompt, str):
        raise WireError(f"A request has the instruction as a text under '{PROMPT}'.")
    if episode is not None and not isinstance(episode, str):
        raise WireError(f"'{EPISODE}' is a text that names the episode.")
    images = {}
    for name, camera in cameras.items():
        if not isinstance(message.get(name), np.ndarray):
            raise WireError(f"A request for {embodiment.name} has an image under '{name}'.")
        images[camera] = embodiment.check_image(camera, message[name])
    if state is not None and not (isinstance(state, np.ndarray) and state.ndim == 1):
        raise WireError(f"'{STATE}' is an array of one dimension.")
    return Request(Observation(images, None if state is None else state.astype(np.float32)), prompt, episode)


def decode_actions(message: Mapping[str, Any], embodiment: Embodiment) -> ActionChunk:
    """The chunk in a server's reply. Raises WireError for anything else."""
    actions = message.get("actions")
    wanted = embodiment.action_size
    if not isinstance(actions, np.ndarray) or actions.ndim != 2 or actions.shape[1] != wanted or not len(actions):
        came = getattr(actions, "shape", type(actions).__name__)
        raise WireError(f"{embodiment.name} takes chunks of {wanted} numbers a step, but {came} came.")
    if actions.dtype.kind in "iuf":
        with np.errstate(over="ignore"):
            numbers = actions.astype(np.float32)
        if np.isfinite(numbers).all():
            return ActionChunk(numbers)
    raise WireError("The server's actions hold something else than finite numbers.")
