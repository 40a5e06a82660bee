"""Is an RLDS dataset intact? Every checksum, count, number and image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hypervla.contracts import UserError
from hypervla.data.encoded_image import decode_image, image_size
from hypervla.data.rlds_features import STEPS, Feature, counted, decode, length, stored_values, unpack
from hypervla.data.rlds_folder import Record, RldsFolder, Split

ACTION = STEPS + "action"


def check(root: Path) -> list[str]:
    """Read all that is there and say what was found, a line each. Raises UserError for the first fault.

    Images are unpacked, texts decoded; nothing needs to be known of the robot.
    """
    folder, lines = RldsFolder(root), []
    listed = folder.check_manifest()
    if listed:
        lines.append(f"{listed} files are those of the manifest")
    for split in folder.choose(None):
        lines.append(_check_split(folder, split))
    if folder.left_out:
        lines.append(f"not here: the shards of {', '.join(folder.left_out)}")
    unread = [f"{feature.name} ({feature.refusal})" for feature in folder.features.values() if feature.kind == "unread"]
    lines += [f"not read: {line}" for line in unread]
    return lines


def _check_split(folder: RldsFolder, split: Split) -> str:
    steps = images = 0
    sizes: dict[str, tuple[int, int]] = {}
    for record in split:
        count = length(folder.features, record.features, record.where)
        if not count:
            raise UserError(f"{record.where} has no steps: write the dataset without it.")
        for feature in folder.features.values():
            if feature.kind == "image":
                images += _check_images(feature, record, count, sizes)
            elif feature.kind == "number" and feature.encoding != "none":
                what = f"'{feature.name}' of {record.where}"
                stored = stored_values(record.features[feature.name]) if feature.name in record.features else ()
                for _ in unpack(feature, counted(stored, count if feature.in_steps else 1, what), what):
                    pass
            elif feature.kind != "unread":
                values = decode(feature, record.features, count, record.where)
                if feature.name.startswith(ACTION) and feature.kind == "number" and not np.isfinite(values).all():
                    raise UserError(f"'{feature.name}' of {record.where} holds NaN or infinity: repair the dataset.")
        _check_flags(folder.features, record, count)
        steps += count
    return f"{split.name}: {len(split)} episodes, {steps} steps, {images} images in {len(split.shards)} shards"


def _check_images(feature: Feature, record: Record, count: int, sizes: dict[str, tuple[int, int]]) -> int:
    """Unpack the images of one feature; all have the size of features.json or, where that is open, of the first."""
    data = decode(feature, record.features, count, record.where)
    if feature.dtype != "uint8" or len(feature.shape) != 3 or feature.shape[2] not in (1, 3, None):
        return 0  # depth and the like: counted and covered by the checksum
    for step, encoded in enumerate(data):
        what = f"step {step} of '{feature.name}' of {record.where}"
        height, width, _ = feature.shape
        if height is None or width is None:
            height, width = sizes.setdefault(feature.name, image_size(encoded, what))
        decode_image(encoded, (height, width), what)
    return len(data)


def _check_flags(features: Mapping[str, Feature], record: Record, count: int) -> None:
    """Compare is_first and is_last with the steps, where they say anything.

    Clips cut from longer episodes mark no end (BridgeData's sample in Octo's tests).
    """
    for name, wanted in (("is_first", 0), ("is_last", count - 1)):
        feature = features.get(STEPS + name)
        if feature is None or feature.kind != "number":
            continue
        flags = np.asarray(decode(feature, record.features, count, record.where))
        at = np.flatnonzero(flags)
        if len(at) and (flags.shape != (count,) or at.tolist() != [wanted]):
            raise UserError(
                f"{record.where} marks the steps {at.tolist()[:5]} of {count} as {name}: write the dataset again, "
                f"one episode a record."
            )
