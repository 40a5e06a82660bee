"""`hypervla data`: look into datasets, check them, convert them, make their statistics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import tyro
from tyro.conf import Positional

from hypervla.options import Cameras, Flag, Out, Robot, Rows

data_app = tyro.extras.SubcommandApp()


@data_app.command
def info(
    folder: Positional[str],
    /,
    *,
    robot: Robot = None,
    rows: Rows = None,
    cameras: Cameras = (),
    sheet: Path | None = None,
) -> None:
    """Say what a dataset holds, as it will be read for training.

    Example: hypervla data info data/mt10 --sheet frames.png

    Args:
        folder: A LeRobot or RLDS dataset, LIBERO's HDF5 files or one of them, or a LeRobot dataset's hub id.
        sheet: Picture to write: frames of some episodes, as the policy would see them.
    """
    from hypervla.arguments import check_outside, told
    from hypervla.data.contact_sheet import contact_sheet
    from hypervla.data.opening import open_dataset
    from hypervla.display import dataset_summary

    check_outside(folder, sheet)
    reader = open_dataset(folder, told(robot, rows, cameras))
    print(dataset_summary(reader))
    if sheet is not None:
        contact_sheet(reader, sheet)
        print(f"Frames are in {sheet}")


@data_app.command
def check(folder: Positional[Path], /, *, manifest: Flag = False) -> None:
    """Check that a dataset is intact: every number, every image, every file's sha256 where a manifest tells it.

    Example: hypervla data check data/mt10

    Args:
        folder: A LeRobot or RLDS dataset, or LIBERO's HDF5 files.
        manifest: When all is well, also write a manifest, so that any later change of a file is found.
    """
    from hypervla.data.opening import check as check_dataset

    for line in check_dataset(folder, manifest=manifest):
        print(line)


@data_app.command
def convert(
    folder: Positional[str],
    /,
    *,
    out: Out,
    to: Literal["v3.0", "v2.1"] = "v3.0",
    images: Literal["video", "image"] = "video",
    robot: Robot = None,
    rows: Rows = None,
    cameras: Cameras = (),
    drop_no_ops: Flag = False,
) -> None:
    """Rewrite a dataset (LeRobot of any version, RLDS, or LIBERO's HDF5 files) as a LeRobot dataset.

    Example: hypervla data convert data/bridge_dataset --out data/bridge --to v3.0

    Args:
        folder: The dataset to read, which stays as it is.
        out: Folder of the new dataset.
        to: LeRobot's format version.
        images: Store images in videos, or one by one.
        drop_no_ops: Leave out steps of LIBERO's demonstrations that ask for nothing, as OpenVLA did.
    """
    from hypervla.arguments import check_outside, told
    from hypervla.data.convert import convert as convert_dataset
    from hypervla.data.libero_hdf5 import LiberoDemos
    from hypervla.data.opening import open_dataset

    check_outside(folder, out)
    reader = open_dataset(folder, replace(told(robot, rows, cameras), drop_no_ops=drop_no_ops))
    convert_dataset(reader, out, version=to, images=images)
    if drop_no_ops and isinstance(reader, LiberoDemos):
        print(f"Left out {reader.dropped:,} steps that ask for nothing.")
    print(f"{out}: {len(reader):,} episodes, {len(reader.actions):,} frames, LeRobot {to}.")


@data_app.command
def stats(folder: Positional[Path], /) -> None:
    """Make the statistics that normalise actions and proprio, from all of a dataset's numbers, and write them to it.

    Example: hypervla data stats data/mine

    Args:
        folder: A LeRobot dataset. (Those of others are made when they are opened.)
    """
    from hypervla.data.opening import write_statistics

    print(f"Wrote {write_statistics(folder)}")
