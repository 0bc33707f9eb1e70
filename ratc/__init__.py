"""ratc: a declarative-spec compiler for deep-learning training. :mod:`ratc.api` is its Python API."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Compilation", "CompileRequest", "Difference", "Fit", "check", "compile", "diff", "fit"]
__all__ += ["load_config_with_auto_optimization"]

if TYPE_CHECKING:
    from ratc.api import (
        Compilation,
        CompileRequest,
        Difference,
        Fit,
        check,
        compile,
        diff,
        fit,
        load_config_with_auto_optimization,
    )


def __getattr__(name: str) -> Any:
    """The names of `ratc.api`, imported when one is used: the command line starts without them."""
    if name in __all__:
        from ratc import api

        return getattr(api, name)
    raise AttributeError(f"module 'ratc' has no attribute {name!r}")
