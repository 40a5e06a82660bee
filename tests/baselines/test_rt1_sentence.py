"""The file of sentence embeddings that RT-1 hears."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hypervla.baselines.rt1_sentence import EmbeddingTable, write_embeddings
from hypervla.contracts import UserError

TABLE = EmbeddingTable("none", width=8)


def test_embeddings_come_back_as_written(tmp_path: Path) -> None:
    rows = np.random.default_rng(1).standard_normal((2, 8)).astype(np.float32)
    write_embeddings(tmp_path / "two.safetensors", {"a": rows[0], "ä": rows[1]})
    found = replace(TABLE, path=str(tmp_path / "two.safetensors")).build(pretrained=True)(["ä", "a", "ä"])
    np.testing.assert_array_equal(found.numpy(), rows[[1, 0, 1]])


def test_files_that_hold_no_embeddings_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "bad.safetensors"
    broken = replace(TABLE, path=str(path))
    with pytest.raises(UserError, match="There is no file"):
        broken.build(pretrained=True)
    path.write_bytes(b"\x80\x04 not safetensors")
    with pytest.raises(UserError, match="is not a safetensors file of sentence embeddings"):
        broken.build(pretrained=True)
    good = np.zeros((1, 8), np.float32)
    for tensors, metadata in (
        ({"embeddings": good}, None),
        ({"embeddings": good}, {"sentences": "{"}),
        ({"embeddings": good}, {"sentences": '["a", "b"]'}),
        ({"embeddings": good}, {"sentences": "[1]"}),
        ({"embeddings": good[:, :4]}, {"sentences": '["a"]'}),
        ({"embeddings": good.astype(np.int32)}, {"sentences": '["a"]'}),
        ({"other": good}, {"sentences": '["a"]'}),
    ):
        save_file(tensors, path, metadata)
        with pytest.raises(UserError, match="is not a safetensors file of sentence embeddings"):
            broken.build(pretrained=True)
    save_file({"embeddings": good * np.nan}, path, {"sentences": '["a"]'})
    with pytest.raises(UserError, match="NaN"):
        broken.build(pretrained=True)
    with pytest.raises(UserError, match="vectors of one length"):
        write_embeddings(path, {"a": good[0], "b": good[0, :4]})
