"""A picture of a dataset: frames of some episodes, one episode a row."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from hypervla.contracts import EpisodeReader, UserError
from hypervla.data.augment import resize
from hypervla.durable import write_atomically

EPISODES, FRAMES, SIZE, GAP, LINE = 8, 6, 112, 4, 18


def contact_sheet(reader: EpisodeReader, path: Path) -> None:
    """Write a PNG of some episodes' frames as a policy would see them (cropped and turned), with their instructions.

    Episodes are spread over the different instructions. Raises UserError for a file name that is no picture's.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"The contact sheet is a PNG picture, but the file to write is '{path}': name it ….png.")
    cameras = reader.embodiment.cameras
    if not cameras:
        raise UserError(f"{reader.name} has no camera to show.")
    episodes = _spread(reader)
    columns = FRAMES * len(cameras)
    width, row = columns * (SIZE + GAP) + GAP, LINE + SIZE + GAP
    sheet = Image.new("RGB", (width, len(episodes) * row + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for y, episode in enumerate(episodes):
        first, end = (int(value) for value in reader.starts[episode : episode + 2])
        rows = np.linspace(first, end - 1, FRAMES).round().astype(int).tolist()
        text = f"episode {episode}, {end - first} steps: {reader.instruction(first) or '(no instruction)'}"
        pen.text((GAP, y * row + 3), text[: width // 6], fill="black")
        for c, camera in enumerate(cameras):
            for f, image in enumerate(reader.images(camera.name, rows)):
                x = GAP + (c * FRAMES + f) * (SIZE + GAP)
                sheet.paste(Image.fromarray(resize(camera.view(image), SIZE)), (x, y * row + LINE))
    data = io.BytesIO()
    sheet.save(data, "PNG")
    write_atomically(path, data.getvalue())


def _spread(reader: EpisodeReader) -> list[int]:
    """Some episodes: first one of each instruction, then more of them, in order."""
    seen: dict[str, list[int]] = {}
    for episode, row in enumerate(reader.starts[:-1].tolist()):
        seen.setdefault(reader.instruction(row), []).append(episode)
    chosen: list[int] = []
    while len(chosen) < min(EPISODES, len(reader)):
        for episodes in seen.values():
            if episodes and len(chosen) < EPISODES:
                chosen.append(episodes.pop(0))
    return sorted(chosen)
