"""Datasets by name: a folder here, or one of the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from hypervla.contracts import UserError
from hypervla.data.lerobot_layout import VERSIONS


def locate(name: str | Path) -> Path:
    """The folder of a dataset: a local one, or that of a Hugging Face hub id, downloaded. Raises UserError."""
    path = Path(name)
    if path.exists() or not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", str(name)):
        return path
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RevisionNotFoundError
    except ModuleNotFoundError as error:
        raise UserError(
            f"There is no folder '{name}', and the Hugging Face hub needs huggingface_hub: pip install huggingface_hub."
        ) from error
    failure: Exception | None = None
    for version in VERSIONS:
        try:
            return Path(snapshot_download(str(name), repo_type="dataset", revision=version))
        except RevisionNotFoundError as error:
            failure = error
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
            failure = failure or error
    raise UserError(
        f"'{name}' is neither a folder here nor to be had from the Hugging Face hub with a tag {', '.join(VERSIONS)} "
        f"({type(failure).__name__}): check the name and the network."
    ) from failure
