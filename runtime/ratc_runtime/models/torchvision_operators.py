"""Makes `import torchvision` work beside a CPU build of torch, if torchvision is a CUDA build, as PyPI's is for Linux.

Its C++ library does not load there, and its Python part fails because it registers fake kernels for missing operators.
If two of them are defined, everything works except calls of `torchvision.ops.nms` itself.

`.ci/setup` copies this file into a virtual environment of such a pair, so it imports nothing of ratc.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Kept for the life of the process: dropping the library would take the definitions back.
_libraries: list[Any] = []


def define() -> None:
    """Define torchvision's operators, if it has none that load."""
    spec = importlib.util.find_spec("torchvision")
    if spec is not None:
        _define(spec.submodule_search_locations or ())


def define_at_import() -> None:
    """Do the same at the first `import torchvision`."""
    sys.meta_path.insert(0, _BeforeTorchvision())


class _BeforeTorchvision:
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            define()


def _define(folders: Iterable[str]) -> None:
    import torch

    if torch.version.cuda is not None or torch.version.hip is not None:
        return  # torchvision matches this torch and brings its own operators
    if hasattr(torch.ops.torchvision, "nms") or any(loads(Path(folder)) for folder in folders):
        return
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)


def loads(package: Path) -> bool:
    """Load the C++ library of an installed torchvision, which defines its operators; say whether that was possible.

    It needs torch to be imported.
    """
    for library in package.glob("_C.*"):
        try:
            ctypes.CDLL(str(library))
        except OSError:
            continue
        return True
    return False
