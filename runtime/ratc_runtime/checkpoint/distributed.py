"""States in the format of torch's distributed checkpoints (DCP), which any number of processes reads.

All values are tensors, so reading needs no pickle but that of the list of contents, `.metadata`, whose unpickler here
takes the classes of that list alone.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from ratc_runtime.config.yaml_file import open_regular

#: The folder of the states in a checkpoint.
FOLDER = "fsdp2"
MODEL, OPTIMIZER = "model.", "optimizer."
_LIST = ".metadata"
#: The classes of a list of contents, by module.
_KNOWN = {
    "pathlib": ("PosixPath",),
    "pathlib._local": ("PosixPath",),  # from Python 3.13 on
    "torch": ("Size",),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo", "_StoragePrefix"),
    "torch.distributed.checkpoint.metadata": (
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
}


class _Restricted(pickle.Unpickler):
    """Takes the classes of a list of contents, and torch's names of types."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _KNOWN.get(module, ()) or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not part of a list of tensors")


class _Reader(dcp.FileSystemReader):
    """torch's reader, with the list of contents read by `contents`."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        metadata = contents(Path(self.path))
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata


def contents(folder: Path) -> Metadata:
    """Return the list of contents of a folder of states. Raises UnpicklingError if it holds more than tensors."""
    with open_regular(folder / _LIST) as file:
        metadata = _Restricted(file).load()
    if not isinstance(metadata, Metadata) or not all(
        isinstance(entry, TensorStorageMetadata) for entry in metadata.state_dict_metadata.values()
    ):
        raise pickle.UnpicklingError("its list of contents is not a list of tensors")
    return metadata


def write(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write this process's parts of named tensors of any shape. Every rank calls this. Raises OSError on every rank."""
    writer = dcp.FileSystemWriter(folder, single_file_per_rank=True, sync_files=False)
    _checked(lambda: dcp.save(dict(tensors), storage_writer=writer))


def read_into(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Read named tensors in place, each rank its parts. Every rank calls this. Raises OSError on every rank."""
    _checked(lambda: dcp.load(dict(tensors), storage_reader=_Reader(folder)))


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the model's whole weights and buffers by name, unsharded, on the CPU, without any process group.

    Raises OSError if the files cannot be read, and the errors of `contents`.
    """
    entries = contents(folder).state_dict_metadata
    whole = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if name.startswith(MODEL) and isinstance(entry, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it is meant
        _checked(lambda: dcp.load(dict(whole), storage_reader=_Reader(folder), no_dist=True))
    return {name.removeprefix(MODEL): value for name, value in whole.items()}


def _checked(action: Any) -> None:
    try:
        action()
    except CheckpointException as error:  # torch derives it from BaseException
        first = next(iter(error.failures.values()), (error, None))[0]
        raise OSError(f"{type(first).__name__}: {first}"[:300]) from error
