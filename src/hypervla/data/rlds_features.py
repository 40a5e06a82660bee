"""What features.json says of an RLDS dataset, and the arrays that the records hold by it.

TFDS joins the names of nested features with slashes and stores each leaf as one flat list of an episode's numbers or
byte strings; encoded tensors are one byte string each. Images stay encoded here.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped

from hypervla.contracts import UserError

STEPS = "steps/"
LARGEST_FEATURE = 1 << 27
"""Bytes of an episode's encoded tensors of one name; more is refused before it is unpacked."""
NUMBERS = (
    "float64",
    "float32",
    "float16",
    "bool",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int8",
    "int16",
    "int32",
    "int64",
)

Kind = Literal["number", "string", "image", "unread"]


@dataclass(frozen=True)
class Feature:
    """One leaf: what a step, or an episode where it lies outside the steps, holds under a name."""

    name: str
    """Path from the root, joined by slashes, as the records spell it."""
    kind: Kind
    shape: tuple[int | None, ...] = ()
    """None where the size varies."""
    dtype: str = ""
    encoding: str = "none"
    """How a tensor became one byte string: none, bytes or zlib; of an image jpeg or png."""
    refusal: str = ""
    """Why an unread feature is not read."""

    @property
    def in_steps(self) -> bool:
        return self.name.startswith(STEPS)


def read_features(path: Path) -> dict[str, Feature]:
    """The leaves of a features.json by name. Raises UserError for a file of another form."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: copy the dataset again, with its metadata.") from error
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): copy the dataset again.") from error
    try:
        leaves = list(_leaves(tree, ()))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} does not describe features as TFDS 4 writes them ({type(error).__name__}: {error}): copy the "
            f"dataset again, or write it with a current tensorflow_datasets."
        ) from error
    features = {feature.name: feature for feature in leaves}
    if len(features) < len(leaves):
        raise UserError(f"{path} has two features of one name: write the dataset again with distinct names.")
    if not any(feature.in_steps for feature in leaves):
        raise UserError(f"{path} has no 'steps': an RLDS dataset holds episodes of steps; open another folder.")
    return features


def _leaves(
    node: Mapping[str, Any], path: tuple[str, ...], sequences: tuple[int | None, ...] = ()
) -> Iterator[Feature]:
    """The leaves below a node that lies inside sequences of these lengths."""
    name, made = "/".join(path), node["pythonClassName"].rpartition(".")[2]

    def unread(why: str) -> Feature:
        return Feature(name, "unread", refusal=why)

    if made == "FeaturesDict":
        for key, child in node["featuresDict"].get("features", {}).items():
            yield from _leaves(child, (*path, key), sequences)
    elif made in ("Dataset", "Sequence"):
        length = int(node["sequence"].get("length", -1))
        inner = (*sequences, None if length < 0 else length)
        yield from _leaves(node["sequence"]["feature"], path, inner)
    elif len(sequences) > 1:
        yield unread("it is a sequence inside of each step (ragged_flat_values), and those are not read here")
    elif made in ("Tensor", "Scalar"):
        tensor = node["tensor"]
        encoding, dtype = tensor.get("encoding", "none") or "none", tensor["dtype"]
        shape = _shape(tensor)
        varying = shape.count(None) + (bool(sequences) and name.startswith(STEPS))
        if dtype not in NUMBERS and dtype not in ("string", "object"):
            yield unread(f"its type is {dtype}, and only {', '.join(NUMBERS)} and string are read here")
        elif encoding not in ("none", "bytes", "zlib"):
            yield unread(f"its encoding is '{encoding}', and only none, bytes and zlib are read here")
        elif varying > 1:
            yield unread(f"its shape {_spell(shape)} varies from step to step, and such tensors are not read here")
        else:
            kind = "number" if dtype in NUMBERS else "string"
            outside = () if name.startswith(STEPS) else sequences
            yield Feature(name, kind, (*outside, *shape), dtype, encoding)
    elif made == "Image":
        image = node["image"]
        shape, form = _shape(image), image.get("encodingFormat") or "png"
        if form not in ("jpeg", "png"):
            yield unread(f"it is an image stored as '{form}', and only jpeg and png are read here")
        else:
            yield Feature(name, "image", shape, image.get("dtype", "uint8"), form)
    elif made == "Text":
        yield Feature(name, "string", () if name.startswith(STEPS) else sequences, "string")
    else:
        yield unread(
            f"it is a {made}, and FeaturesDict, Dataset, Sequence, Tensor, Scalar, Image and Text are read here"
        )


def _shape(node: Mapping[str, Any]) -> tuple[int | None, ...]:
    sizes = [int(size) for size in node.get("shape", {}).get("dimensions", ())]
    if min(sizes, default=0) < -1:
        raise ValueError(f"a size of {min(sizes)}")
    return tuple(None if size < 0 else size for size in sizes)


def _spell(shape: Sequence[int | None]) -> str:
    return "(" + ", ".join("?" if size is None else str(size) for size in shape) + ")"


def length(features: Mapping[str, Feature], record: Mapping[str, Any], where: str) -> int:
    """The number of steps of an episode. Raises UserError when nothing in it tells."""
    scalar = [
        f for f in features.values() if f.in_steps and f.kind != "unread" and (f.kind == "image" or f.shape == ())
    ]
    scalar.sort(key=lambda feature: feature.name != STEPS + "is_first")
    for feature in scalar:
        if feature.name in record:
            return len(stored_values(record[feature.name]))
    raise UserError(f"{where} has no steps/is_first and nothing else to count its steps by: copy the dataset again.")


def decode(
    feature: Feature, record: Mapping[str, Any], steps: int, where: str
) -> Shaped[np.ndarray, "T ..."] | list[bytes]:
    """All T values of a step feature (T = 1 of an episode's): an array of its type, or a list of byte strings, images.

    Raises UserError naming the feature and `where` for anything that features.json does not announce.
    """
    what, count = f"'{feature.name}' of {where}", steps if feature.in_steps else 1
    if feature.kind == "unread":
        raise UserError(f"{what} cannot be read: {feature.refusal}.")
    if feature.name not in record:
        raise UserError(f"{what} is missing, though features.json announces it: copy or write the dataset again.")
    stored = record[feature.name].WhichOneof("kind")
    values = stored_values(record[feature.name])
    packed = feature.kind != "number" or feature.encoding != "none"
    wanted = "bytes_list" if packed else "float_list" if feature.dtype.startswith("float") else "int64_list"
    if stored != wanted and (stored is not None or count):
        raise UserError(f"{what} should be a {wanted} by features.json, but a {stored} came: write the dataset again.")
    if feature.kind == "image" or (feature.kind == "string" and feature.shape == ()):
        return list(counted(values, count, what))
    if feature.kind == "string":
        return np.array([*values, None], object)[:-1].reshape(_full_shape(feature, count, len(values), what))
    if not packed:
        return _numbers(feature, values, what).reshape(_full_shape(feature, count, len(values), what))
    if _bytes(feature, what) * count > LARGEST_FEATURE:
        raise UserError(
            f"{what} would unpack to {count} × {_bytes(feature, what)} bytes by features.json, more than the "
            f"{LARGEST_FEATURE} of one episode that are held here: write shorter episodes."
        )
    unpacked = list(unpack(feature, counted(values, count, what), what))
    flat = np.concatenate(unpacked) if unpacked else np.zeros(0, feature.dtype)
    return flat.reshape(_full_shape(feature, count, len(flat), what))


def inflate(data: bytes, size: int, what: str) -> bytes:
    """A zlib stream that must give exactly `size` bytes. Raises UserError, having unpacked one byte more at most."""
    stream = zlib.decompressobj()
    try:
        out = stream.decompress(data, size + 1)
    except zlib.error as error:
        raise UserError(f"{what} is no zlib stream ({error}): copy or write the dataset again.") from error
    if len(out) != size or not stream.eof or stream.unused_data:
        came = f"more than {size}" if len(out) > size else f"{len(out)}{'' if stream.eof else ' and no end'}"
        raise UserError(f"{what} should unpack to {size} bytes, but {came} came: copy or write the dataset again.")
    return out


def stored_values(feature: Any) -> Sequence[Any]:
    """The list that a Feature message holds."""
    kind = feature.WhichOneof("kind")
    return () if kind is None else getattr(feature, kind).value


def counted(values: Sequence[Any], count: int, what: str) -> Sequence[Any]:
    """The values, if there are so many. Raises UserError naming `what` otherwise."""
    if len(values) != count:
        raise UserError(f"{what} should have {count} values, but has {len(values)}: copy or write the dataset again.")
    return values


def _full_shape(feature: Feature, count: int, values: int, what: str) -> tuple[int, ...]:
    """(T, *shape), the one size that varies worked out from the number of values."""
    known = count * math.prod(size for size in feature.shape if size is not None)
    free = values // known if known else 0
    shape = (count, *(free if size is None else size for size in feature.shape))
    if math.prod(shape) != values:
        raise UserError(
            f"{what} should have {count} × {_spell(feature.shape)} values, but has {values}: "
            f"copy or write the dataset again."
        )
    return shape


def _numbers(feature: Feature, values: Sequence[Any], what: str) -> Shaped[np.ndarray, " n"]:
    """The numbers of a list in the announced type. Raises UserError for integers that do not fit it."""
    if feature.dtype.startswith("float"):
        return np.fromiter(values, np.float32, len(values)).astype(feature.dtype)
    whole = np.fromiter(values, np.int64, len(values))
    if feature.dtype == "uint64":  # TFDS stores their bits in int64
        return whole.view(np.uint64)
    low, high = (0, 1) if feature.dtype == "bool" else (np.iinfo(feature.dtype).min, np.iinfo(feature.dtype).max)
    if len(whole) and (whole.min() < low or whole.max() > high):
        raise UserError(
            f"{what} holds {whole.min()} to {whole.max()}, which is no {feature.dtype}: write the dataset again."
        )
    return whole.astype(feature.dtype)


def unpack(feature: Feature, values: Sequence[bytes], what: str) -> Iterator[Shaped[np.ndarray, " n"]]:
    """Encoded tensors, one by one. Raises UserError naming `what`."""
    dtype, size = np.dtype(feature.dtype), _bytes(feature, what)
    for data in values:
        raw = inflate(data, size, what) if feature.encoding == "zlib" else data
        if len(raw) != size:
            raise UserError(f"{what} should have {size} bytes, but has {len(raw)}: copy or write the dataset again.")
        numbers = np.frombuffer(raw, np.uint8 if feature.dtype == "bool" else dtype.newbyteorder("<"))
        if feature.dtype == "bool" and numbers.max(initial=0) > 1:
            raise UserError(f"{what} holds {numbers.max()}, which is no bool: write the dataset again.")
        yield numbers.astype(dtype)


def _bytes(feature: Feature, what: str) -> int:
    """What one encoded tensor unpacks to."""
    if None in feature.shape:
        raise UserError(f"{what} is an encoded tensor of varying size {_spell(feature.shape)}, which is not read here.")
    size = math.prod(n for n in feature.shape if n is not None) * np.dtype(feature.dtype).itemsize
    if size > LARGEST_FEATURE:
        raise UserError(f"{what} has {size} bytes by features.json, more than the {LARGEST_FEATURE} that are unpacked.")
    return size
