"""Variables that torch reads with fixed words or numbers when it is imported, or when processes meet: with any other
value it ends with a traceback. They are looked at before that.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping

from ratc_runtime.errors import RuntimeFinding

#: How the names begin of what torch's modules, and NumPy for them, read when they are imported.
_READ = ("AOTINDUCTOR_", "COMPILE_STROBELIGHT_", "NUMPY_", "PYTORCH_", "TORCH", "TRITON_")
#: Of these, what a launcher, a script or an import of Lightning sets, what is read later (see `_MEETING`), and paths:
#: they cost no time.
_NOT_ASKED = re.compile(
    r"PYTORCH_(CUDA_|HIP_)?ALLOC_CONF|PYTORCH_NVML_BASED_CUDA_CHECK|TORCH_?ELASTIC_\w+|TORCH_NCCL_\w+"
    r"|\w+_(DIR|DIRS|HOME|PATH|FILE)|TORCH_CUDA_ARCH_LIST"
)
#: The words of some, in any case (`ratc.catalog.launch_variables`; a test compares them).
WORDS = {"TORCH_DISTRIBUTED_DEBUG": ("OFF", "INFO", "DETAIL")}
#: What the NCCL backend reads when processes meet: true or false, or a number; but for names of files.
_MEETING = re.compile(r"TORCH_NCCL_(?!\w*(FILE|PREFIX|PATH)$)\w+")
_SWITCH = re.compile(r"(?i:y|yes|t|true|n|no|f|false)|-?[0-9]{1,18}")
#: Imports that read them.
_IMPORT = "import torch, torch.distributed, torch._dynamo.config, torch._inductor.config"


def check_torch_variables(environment: Mapping[str, str]) -> None:
    """Raise R587 if torch cannot take a variable of an environment.

    Torch itself is asked about those that it reads when it is imported. That takes seconds, which are spent only if
    there are any; of some the words are known.
    """
    for name, value in environment.items():
        words = WORDS.get(name)
        if words is not None and value.upper() not in words:
            raise _refused({name: value}, f"it takes {', '.join(words)}")
        if _MEETING.fullmatch(name) and not _SWITCH.fullmatch(value):
            raise _refused({name: value}, "it takes a number, or true or false")
    asked = {
        name: value
        for name, value in environment.items()
        if value and name.startswith(_READ) and name not in WORDS and not _NOT_ASKED.fullmatch(name)
    }
    if not asked or not (said := _failure(environment)):
        return
    rest = {name: value for name, value in environment.items() if name not in asked}
    if _failure(rest):
        return  # it is not for these variables, and the import will say why
    named = {name: value for name, value in asked.items() if name in said}
    bad = named or {name: value for name, value in asked.items() if len(asked) == 1 or _failure({**rest, name: value})}
    logs = "TORCH_LOGS=help shows the names of logs" if "TORCH_LOGS" in bad else ""
    raise _refused(bad or asked, "\n".join(filter(None, (said.splitlines()[-1][:200], logs))))


def _failure(environment: Mapping[str, str]) -> str:
    """Return torch's error if it cannot be imported."""
    import subprocess  # few starts need it, and preflight is to be fast

    command = [sys.executable, "-c", _IMPORT]
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False)
    return done.stderr.strip() or f"status {done.returncode}" if done.returncode else ""


def _refused(bad: Mapping[str, str], note: str) -> RuntimeFinding:
    told = " and ".join(f"{name}={value!r:.60}" for name, value in sorted(bad.items()))
    return RuntimeFinding(
        "R587",
        f"torch does not accept {told}",
        note,
        f"unset {' and '.join(sorted(bad))}, or correct it",
    )


def refuse() -> None:
    """End the process with R587 if torch cannot take the environment's variables.

    In a process that a launcher has started nothing is looked at: the launcher imports torch, and preflight came first.
    """
    if "RANK" in os.environ:
        return
    try:
        check_torch_variables(os.environ)
    except RuntimeFinding as finding:
        print(finding.render(), file=sys.stderr, flush=True)
        raise SystemExit(1) from None
