"""What every test starts from: software rendering, no network, and the recordings that may lie beside the checkout.

Nothing here imports hypervla at the top: jaxtyping's hook must come first.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("MUJOCO_GL", "egl")
# Models here are tiny: two threads spend their time waiting for each other, a hundred times longer on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
_cache = tempfile.TemporaryDirectory(prefix="hypervla-cache-")
os.environ["HYPERVLA_CACHE"] = _cache.name

# Examples differ between local runs and never fail for being slow; CI draws the same ones each time.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of recordings too large for the repository, or a skip that says how to name it."""
    folder = os.environ.get("HYPERVLA_TEST_DATA")
    if not folder:
        pytest.skip("set HYPERVLA_TEST_DATA to the folder of shared recordings")
    path = Path(folder)
    assert path.is_dir(), f"HYPERVLA_TEST_DATA names {path}, which is no folder"
    return path


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny T5 encoder with its tokenizer, as `save_pretrained` writes them."""
    from tests import tiny

    return tiny.write_text_encoder(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def vision_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DINOv2, as `save_pretrained` writes it."""
    from tests import tiny

    return tiny.write_vision_encoder(tmp_path_factory.mktemp("vision"))


@pytest.fixture(scope="session")
def point_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations of PointWorld: a dataset to train on, read only."""
    from tests import tiny

    return tiny.write_dataset(tmp_path_factory.mktemp("data") / "points")


@pytest.fixture(scope="session")
def checkpoint_folder(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny convolutional checkpoint with variance initialisation, so that contexts differ without training."""
    from hypervla.models.hypernetwork import HypernetworkConfig
    from tests import tiny

    heads = HypernetworkConfig(width=8, layers=1, heads=2, mlp=16, initialisation="variance")
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny.save_checkpoint(folder, tiny.convolutional(text_folder, hypernetwork=heads))
    return folder


@pytest.fixture
def compiler(checkpoint_folder: Path):
    """That checkpoint, loaded afresh: the test may take it to pieces."""
    from hypervla.runtime.compiler import load

    return load(checkpoint_folder)
