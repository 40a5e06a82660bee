"""Reads LIBERO's published demonstrations: HDF5 files in robomimic's layout, one for each task."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from hypervla.contracts import Episode, Image, UserError
from hypervla.data import manifest
from hypervla.data.handles import Handles
from hypervla.data.statistics import reader_statistics
from hypervla.data.tasks import acting_steps
from hypervla.embodiment import LIBERO_PANDA, Embodiment
from hypervla.simulation.libero import sentence

SUFFIXES = (".hdf5", ".h5")
CAMERAS = {"image": "agentview_rgb", "wrist_image": "eye_in_hand_rgb"}
"""Image datasets below `obs`, by the robot's cameras."""
DEMO = re.compile(r"demo_\d+")
NAMED = re.compile(r"(.+)_demo")
"""How a file is called after its task."""
JOINTS = slice(1, 8)
"""The arm's joints in a flat state of the simulator, behind the time."""
COMPRESSION = 1100
"""More than any of HDF5's filters achieves."""
OPEN_FILES = 8
"""Files that each thread keeps open."""


@dataclass(frozen=True)
class _Demo:
    """One demonstration: its numbers, and where its images are."""

    path: Path
    name: str
    instruction: str
    actions: Float32[np.ndarray, "T 7"]
    proprio: Float32[np.ndarray, "T 8"]
    steps: Int64[np.ndarray, " T"]
    """The observations of these steps."""
    lag: int
    """By how many steps the file stores an observation after the action that was chosen on it."""
    sizes: tuple[tuple[int, int], ...]
    """Height and width of each camera."""

    @property
    def where(self) -> str:
        return f"{self.path}: {self.name}"


class LiberoDemos:
    """A file of demonstrations, or a folder of such files; an EpisodeReader.

    LIBERO's own files store with each action what was seen after it, OpenVLA's regenerated ones what was seen before.
    The states in the file tell which; here an action always comes with what was seen before it, which costs LIBERO's
    own files the first action of each demonstration.
    """

    embodiment: Embodiment

    def __init__(self, root: Path, *, cameras: Sequence[str] = (), drop_no_ops: bool = False) -> None:
        """Read all numbers; `cameras` chooses some of the two. Raises UserError for what is not intact.

        With `drop_no_ops` only the `acting_steps` are kept, and demonstrations that have some.
        """
        self.root, self.name = root, root.resolve().stem
        chosen = [LIBERO_PANDA.camera(name) for name in cameras] or LIBERO_PANDA.cameras
        self._files = [root] if root.is_file() else files(root)
        if root.is_dir() and manifest.Manifest.read(root) is not None:
            _ = self.digest
        self.paraphrases: Mapping[str, Sequence[str]] = {}
        found = [demo for path in self._files for demo in _read(path)]
        kept = [_without_no_ops(demo) for demo in found] if drop_no_ops else found
        self._demos = [demo for demo in kept if len(demo.actions)]
        self.dropped = sum(len(demo.actions) for demo in found) - sum(len(demo.actions) for demo in kept)
        """Steps left out because they ask for nothing."""
        if not self._demos:
            raise UserError(f"{root} has no demonstration in which the robot is told to do anything.")
        sizes = self._demos[0].sizes
        for demo in self._demos:
            if demo.sizes != sizes:
                raise UserError(
                    f"{demo.where} has images of {_said(demo.sizes)}, but {self._demos[0].where} of {_said(sizes)}: "
                    f"keep demonstrations of other sizes in another folder."
                )
        by_name = dict(zip(CAMERAS, sizes, strict=True))
        sized = tuple(replace(c, height=by_name[c.name][0], width=by_name[c.name][1]) for c in chosen)
        self.embodiment = replace(LIBERO_PANDA, cameras=sized)
        self.actions: Float32[np.ndarray, "F 7"] = np.concatenate([demo.actions for demo in self._demos])
        self.proprio: Float32[np.ndarray, "F 8"] | None = np.concatenate([demo.proprio for demo in self._demos])
        lengths = [len(demo.actions) for demo in self._demos]
        self.starts: Int64[np.ndarray, " starts"] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self.validation_episodes: Int64[np.ndarray, " V"] = np.zeros(0, np.int64)
        self._open = Handles(OPEN_FILES)

    @property
    def digest(self) -> str:
        """sha256 over names and contents of the files. Raises UserError when one is not what a manifest says."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        if self.root.is_file():
            return manifest.sha256(self.root)
        return manifest.digest(self.root, [f"*{suffix}" for suffix in SUFFIXES])

    def __len__(self) -> int:
        return len(self._demos)

    def __iter__(self) -> Iterator[Episode]:
        return (self.episode(index) for index in range(len(self)))

    def instruction(self, row: int) -> str:
        return self._demos[self._episode_of(row)].instruction

    def images(self, camera: str, rows: Sequence[int]) -> list[Image]:
        """What the camera saw at these rows, as LIBERO delivers it: upside down."""
        self.embodiment.camera(camera)
        rows = [int(row) for row in rows]
        if rows and not 0 <= min(rows) <= max(rows) < len(self.actions):
            raise UserError(f"{self.root} has rows 0 to {len(self.actions) - 1}, but {min(rows)} to {max(rows)} came.")
        return [self._image(camera, row) for row in rows]

    def _image(self, camera: str, row: int) -> Image:
        episode = self._episode_of(row)
        demo = self._demos[episode]
        step = int(demo.steps[row - self.starts[episode]])
        with _reading(f"{demo.where}, step {step} of '{CAMERAS[camera]}'"):
            file = self._open.get(demo.path, lambda: _open(demo.path))
            return file[f"data/{demo.name}/obs/{CAMERAS[camera]}"][step]

    def statistics(self) -> dict[str, dict[str, np.ndarray]]:
        """mean, std, min, max, q01, q99 and count of the numbers, over all demonstrations."""
        return self._statistics

    @cached_property
    def _statistics(self) -> dict[str, dict[str, np.ndarray]]:
        return reader_statistics(self.actions, self.proprio)

    def episode(self, index: int) -> Episode:
        """One demonstration, all images read."""
        if not 0 <= index < len(self):
            raise UserError(f"{self.root} has episodes 0 to {len(self) - 1}, but {index} was asked for.")
        demo, rows = self._demos[index], range(*self.starts[index : index + 2].tolist())
        return Episode(
            instruction=demo.instruction,
            images={camera.name: np.stack(self.images(camera.name, rows)) for camera in self.embodiment.cameras},
            actions=demo.actions,
            proprio=demo.proprio,
            source={"file": demo.path.name, "demo": demo.name, "lag": demo.lag},
        )

    def _episode_of(self, row: int) -> int:
        return int(np.searchsorted(self.starts, row, side="right")) - 1


def files(folder: Path) -> list[Path]:
    """The HDF5 files of a folder that are not hidden, by name."""
    return sorted(path for path in folder.glob("[!.]*") if path.suffix in SUFFIXES and path.is_file())


def is_hdf5(path: Path) -> bool:
    """Whether this is an HDF5 file by its name, or a folder that has some."""
    return (path.is_file() and path.suffix in SUFFIXES) or (path.is_dir() and bool(files(path)))


def check(root: Path) -> list[str]:
    """Read all of it; a line for each kind of thing that was checked. Raises UserError at the first fault."""
    lines = []
    listed = manifest.Manifest.read(root) if root.is_dir() else None
    if listed is not None:
        listed.check_listing(root)
        listed.check(root)
        lines.append(f"manifest   {len(listed.files):,} files have the sha256 it lists")
    reader = LiberoDemos(root)
    lines.append(f"numbers    {len(reader):,} demonstrations, {len(reader.actions):,} steps: complete, finite")
    for camera in reader.embodiment.cameras:
        for row in range(len(reader.actions)):
            reader.images(camera.name, [row])
        lines.append(f"images     {len(reader.actions):,} of {camera.name}: complete")
    return lines


def _read(path: Path) -> list[_Demo]:
    """All demonstrations of a file, by their numbers."""
    with _open(path) as file, _reading(path):
        data = file["data"]
        instruction = _instruction(path, data)
        names = list(data)
        odd = [name for name in names if DEMO.fullmatch(name) is None]
        wanted = data.attrs.get("num_demos", len(names))
        if odd or not names or wanted != len(names):
            what = f"'{odd[0]}' in it" if odd else f"{len(names)} of {wanted} demonstrations"
            raise UserError(f"{path} has {what}, but demo_0, demo_1, … were wanted: download it again.")
        names.sort(key=lambda name: int(name.removeprefix("demo_")))
        return [_read_demo(path, name, data[name], instruction) for name in names]


def _without_no_ops(demo: _Demo) -> _Demo:
    kept = acting_steps(demo.actions)
    return replace(demo, actions=demo.actions[kept], proprio=demo.proprio[kept], steps=demo.steps[kept])


def _read_demo(path: Path, name: str, group: Any, instruction: str) -> _Demo:
    where = f"{path}: {name}"
    with _reading(where):
        actions = _numbers(where, group, "actions", None, 7)
        count = len(actions)
        if (said := group.attrs.get("num_samples", count)) != count:
            raise UserError(f"{where} has {count} actions, but says it has {said} samples: download it again.")
        poses, fingers, joints = (
            _numbers(where, group, f"obs/{key}", count, width)
            for key, width in (("ee_states", 6), ("gripper_states", 2), ("joint_states", 7))
        )
        lag = observation_lag(_numbers(where, group, "states", count, None), joints)
        sizes = tuple(_image_size(where, group, f"obs/{key}", count) for key in CAMERAS.values())
    observed = count - lag
    return _Demo(
        path=path,
        name=name,
        instruction=instruction,
        actions=actions[lag:].astype(np.float32),
        proprio=np.concatenate([poses, fingers], axis=1)[:observed].astype(np.float32),
        steps=np.arange(observed),
        lag=lag,
        sizes=sizes,
    )


def observation_lag(states: Float64[np.ndarray, "T S"], joints: Float64[np.ndarray, "T 7"]) -> int:
    """1 when the joints that were observed are those of the next state, 0 when they are those of the same (or T = 1).

    States are those before each action.
    """
    same, following = states[:-1, JOINTS] - joints[:-1], states[1:, JOINTS] - joints[:-1]
    return int(np.abs(following).sum() < np.abs(same).sum())


def _numbers(where: str, group: Any, name: str, count: int | None, width: int | None) -> Float64[np.ndarray, "T n"]:
    """A matrix of numbers, `count` × `width` where they are known. Raises UserError for any other."""
    data = _dataset(where, group, name)
    fits = len(data.shape) == 2 and count in (None, data.shape[0]) and width in (None, data.shape[1])
    if not fits or not data.size or data.dtype.kind not in "fiu" or (width is None and data.shape[1] < JOINTS.stop):
        raise _misfit(where, name, data, f"({count or 'T'}, {width or 'S'}) numbers")
    values = np.asarray(data[()], np.float64)
    if not np.isfinite(values).all() or np.abs(values).max() > np.finfo(np.float32).max:
        raise UserError(f"{where}: '{name}' holds NaN or infinity: repair the file, or leave the demonstration out.")
    return values


def _image_size(where: str, group: Any, name: str, count: int) -> tuple[int, int]:
    """Height and width of `count` images. Raises UserError for anything else."""
    data = _dataset(where, group, name)
    if len(data.shape) != 4 or data.shape[0] != count or data.shape[3] != 3 or data.dtype != np.uint8 or not data.size:
        raise _misfit(where, name, data, f"({count}, height, width, 3) uint8")
    return int(data.shape[1]), int(data.shape[2])


def _dataset(where: str, group: Any, name: str) -> Any:
    """A dataset whose values are there. Raises UserError otherwise."""
    data = group.get(name)
    if not hasattr(data, "nbytes"):
        raise UserError(f"{where} has no dataset '{name}': LIBERO's demonstrations have one; download the file again.")
    if data.id.get_storage_size() * COMPRESSION < data.nbytes:
        raise UserError(f"{where}: the values of '{name}' are not in the file: download it again.")
    return data


def _misfit(where: str, name: str, data: Any, wanted: str) -> UserError:
    return UserError(f"{where}: '{name}' should be {wanted}, but {data.shape} {data.dtype} came: download it again.")


def _instruction(path: Path, data: Any) -> str:
    """The sentence in the file's name, as the published evaluations say it; else the one in the file.

    Text in a damaged file can keep the HDF5 library busy for ever, so that it is not read where the name is enough.
    """
    if named := NAMED.fullmatch(path.stem):
        return sentence(named[1])
    if "problem_info" not in data.attrs:
        raise UserError(f"{path} does not say what is to be done: call it TASK_demo.hdf5, as LIBERO does.")
    try:
        return "".join(json.loads(data.attrs["problem_info"])["language_instruction"]).strip('" \n')
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path}: its problem_info is no JSON with a language_instruction ({type(error).__name__}): "
            f"download it again."
        ) from error


def _open(path: Path) -> Any:
    """The HDF5 file. Raises UserError for what is none."""
    h5py = import_module("h5py")
    try:
        return h5py.File(path, "r")
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} is no HDF5 file, or not all of one ({_line(error)}): download it again.") from error


@contextmanager
def _reading(what: object) -> Iterator[None]:
    """Whatever the HDF5 library says of a damaged file becomes one sentence."""
    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, MemoryError) as error:
        raise UserError(f"{what} is damaged ({_line(error)}): download the file again.") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _said(sizes: Sequence[tuple[int, int]]) -> str:
    return " and ".join(f"{height}×{width}" for height, width in sizes)
