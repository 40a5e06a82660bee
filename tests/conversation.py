"""Image-text pairs and a tokenizer to learn to talk about pictures with, made here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.tiny import INSTRUCTIONS


def write_tokenizer(text_folder: Path, folder: Path) -> Path:
    """PointWorld's words and an end."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(text_folder)
    tokenizer.add_special_tokens({"eos_token": "</s>"})
    tokenizer.save_pretrained(folder)
    return folder


def write_pairs(folder: Path, count: int = 12, side: int = 24) -> Path:
    """A bright or a dark picture each (every fourth has none), and what it is called: two words tell the two apart."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    words, rows = INSTRUCTIONS[0].split(), []
    for i in range(count):
        bright, row = i % 2, {"id": i}
        if i % 4 != 3:
            row["image"] = f"{i}.png"
            picture = random.integers(bright * 128, bright * 128 + 128, size=(side, side + 4, 3), dtype=np.uint8)
            Image.fromarray(picture).save(folder / row["image"])
        mark = "<image>\n" if "image" in row else ""
        question = {"from": "human", "value": f"{mark}{words[0]}"}
        rows.append(row | {"conversations": [question, {"from": "gpt", "value": words[1 + bright]}]})
    (folder / "pairs.json").write_text(json.dumps(rows))
    return folder / "pairs.json"
