"""From words to datasets: folders of any known format, weighted mixtures, named mixtures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hypervla.contracts import EpisodeReader, UserError
from hypervla.data.mixture import Mixture
from hypervla.data.robot_file import RobotFile
from hypervla.data.tasks import read_paraphrases


@dataclass(frozen=True)
class Told:
    """What a user says of data beyond where it lies."""

    robot: RobotFile | None = None
    """What LeRobot data does not say of its robot."""
    rows: Path | None = None
    """Rows of the user's own for RLDS datasets, by name."""
    paraphrases: Path | None = None
    """Other ways to say instructions, for all datasets (scripts/convert_paraphrases.py)."""
    cameras: tuple[str, ...] = ()
    """The cameras to use, in this order; empty for all of a LeRobot dataset, the primary one of an RLDS dataset."""
    drop_no_ops: bool = False
    """Leave out steps of LIBERO's demonstrations that ask for nothing."""


NOTHING = Told()


def open_dataset(name: str | Path, told: Told = NOTHING) -> EpisodeReader:
    """The dataset in a folder (LeRobot, RLDS or LIBERO's HDF5 files, told apart by what lies there), in one such file,
    or of a Hugging Face hub id.

    Raises UserError for anything else, or for data that is not intact.
    """
    path, kind = Path(name), kind_of(Path(name))
    if told.drop_no_ops and kind != "hdf5":
        what = "is no HDF5 file of LIBERO" if path.exists() else "is not here, let alone HDF5 files of LIBERO"
        raise UserError(f"{name} {what}: --drop-no-ops is for those.")
    if kind == "lerobot":
        reader = _open_lerobot(name, told)
    else:
        reader = _open_rlds(path, told) if kind == "rlds" else _open_hdf5(path, told)
    if told.paraphrases is not None:
        reader.paraphrases = {**reader.paraphrases, **read_paraphrases(told.paraphrases)}
    return reader


def _open_lerobot(name: str | Path, told: Told) -> EpisodeReader:
    from hypervla.data.hub import locate
    from hypervla.data.lerobot import LeRobotDataset

    if told.rows is not None:
        raise UserError(f"{name} is no RLDS dataset: --rows describes those; describe its robot with --robot.")
    root, features = locate(name), told.robot.features if told.robot else None
    reader = LeRobotDataset(root, features=features)
    robot = reader.embodiment if told.robot is None else told.robot.apply(reader.embodiment)
    if told.cameras:
        robot = replace(robot, cameras=tuple(robot.camera(camera) for camera in told.cameras))
    return reader if robot == reader.embodiment else LeRobotDataset(root, features=features, embodiment=robot)


def kind_of(path: Path) -> Literal["lerobot", "rlds", "hdf5"]:
    """What lies there; whatever is neither RLDS nor HDF5 is taken for LeRobot data, or a hub id of some."""
    from hypervla.data.libero_hdf5 import is_hdf5

    if (path / "meta/info.json").is_file():
        return "lerobot"
    if is_rlds(path):
        return "rlds"
    return "hdf5" if is_hdf5(path) else "lerobot"


def is_rlds(path: Path) -> bool:
    """Whether the folder holds an RLDS dataset: dataset_info.json in it, or one or two levels below."""
    if not path.is_dir() or (path / "meta/info.json").is_file():
        return False
    return any(
        next(path.glob(pattern), None)
        for pattern in ("dataset_info.json", "*/dataset_info.json", "*/*/dataset_info.json")
    )


def _open_rlds(path: Path, told: Told) -> EpisodeReader:
    from hypervla.data import oxe
    from hypervla.data.rlds import RldsDataset
    from hypervla.data.rlds_folder import RldsFolder

    if told.robot is not None:
        raise UserError(
            f"{path} is an RLDS dataset, which a row describes: --robot is for LeRobot datasets; "
            f"give a row of your own with --rows."
        )
    name = RldsFolder(path).name
    own = oxe.read_rows(told.rows) if told.rows is not None else {}
    if told.rows is not None and name not in own:
        raise UserError(f"{told.rows} has rows for {', '.join(own) or 'nothing'}, but none for {name}: add one.")
    row = own.get(name) or oxe.row(name)
    return RldsDataset(path, row.seeing(*told.cameras) if told.cameras else row)


def _open_hdf5(path: Path, told: Told) -> EpisodeReader:
    from hypervla.data.libero_hdf5 import LiberoDemos

    if told.robot is not None or told.rows is not None:
        raise UserError(f"{path} is LIBERO's HDF5 data, whose robot is known: leave --robot and --rows out.")
    return LiberoDemos(path, cameras=told.cameras, drop_no_ops=told.drop_no_ops)


def split_weight(word: str) -> tuple[str, float]:
    """`PATH` or `PATH:WEIGHT`. Raises UserError for a weight that is no number above 0."""
    path, colon, weight = word.rpartition(":")
    if not colon or Path(word).exists():
        return word, 1.0
    try:
        number = float(weight)
    except ValueError:
        return word, 1.0
    if not 0 < number < float("inf"):
        raise UserError(f"'{word}' gives the weight {weight}: a weight is a number above 0.")
    return path, number


def open_mixture(words: Sequence[str | Path], *, named: str | None = None, told: Told = NOTHING) -> Mixture:
    """The datasets of `PATH[:WEIGHT]` words; with `named`, the datasets of that mixture in one folder.

    Raises UserError naming what is missing.
    """
    if not words:
        raise UserError("Say which data to train on: --data FOLDER, once or several times.")
    if named is None:
        pairs = [split_weight(str(word)) for word in words]
        kinds = [kind_of(Path(path)) for path, _ in pairs]
        by_kind = dict.fromkeys(kinds, told)
        if len(by_kind) > 1:  # each option speaks of the datasets of its kind
            by_kind = {
                kind: replace(
                    told,
                    robot=told.robot if kind == "lerobot" else None,
                    rows=told.rows if kind == "rlds" else None,
                )
                for kind in by_kind
            }
        readers = [open_dataset(path, by_kind[kind]) for (path, _), kind in zip(pairs, kinds, strict=True)]
        return Mixture(readers, [weight for _, weight in pairs])
    from hypervla.data.oxe import mixture

    if len(words) != 1:
        raise UserError(f"The mixture {named} lies in one folder: give --data once, not {len(words)} times.")
    root, weights = Path(words[0]), mixture(named)
    missing = [name for name in weights if not is_rlds(root / name)]
    if missing:
        raise UserError(
            f"{root} lacks {len(missing)} of the {len(weights)} datasets of {named} ({', '.join(missing[:3])}"
            f"{', …' if len(missing) > 3 else ''}): download them there, or name the datasets you have with --data."
        )
    return Mixture([open_dataset(root / name, told) for name in weights], list(weights.values()))


def check(path: Path, *, manifest: bool = False) -> list[str]:
    """Check a dataset in full and say what was checked; with `manifest` also write one, when all is well.

    Raises UserError at the first fault.
    """
    from hypervla.data import manifest as manifests

    if manifest and path.is_file():
        raise UserError(f"{path} is one file, but a manifest is of a folder: name the folder it lies in.")
    kind = kind_of(path)
    if kind == "rlds":
        from hypervla.data.rlds_check import check as check_files
    elif kind == "hdf5":
        from hypervla.data.libero_hdf5 import check as check_files
    else:
        from hypervla.data.lerobot_check import check as check_files
    lines = check_files(path)
    if manifest:
        lines.append(f"wrote {manifests.write(path)}")
    return lines


def write_statistics(path: Path) -> Path:
    """Make a LeRobot dataset's statistics and write them into its metadata. Raises UserError for other folders."""
    if kind_of(path) != "lerobot":
        raise UserError(
            f"{path} is no LeRobot dataset: its statistics are made when it is opened, there is nothing to do."
        )
    from hypervla.data.lerobot_statistics import write_statistics as write

    return write(path)
