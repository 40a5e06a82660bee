"""Options that several commands have, with their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, UseAppendAction, arg

Flag = FlagCreatePairsOff[bool]
Out = Annotated[Path, arg(aliases=["-o"])]
Device = Annotated[str, arg(help="cpu, cuda or cuda:N.")]
Robot = Annotated[Path | None, arg(help="A TOML file with what LeRobot data does not say about its robot.")]
Rows = Annotated[Path | None, arg(help="A TOML file that says how RLDS datasets are read, like data/oxe.toml.")]
Cameras = UseAppendAction[
    Annotated[tuple[str, ...], arg(name="camera", help="Only this camera of the data; several may be given.")]
]
Initial = Annotated[str | None, arg(name="init")]
