"""Environment variables that override values of the lock: launchers and their libraries read them with precedence.

The job scripts remove them before they start a launcher, and no spec or cluster may set them. Sources: Accelerate 1.15
(`state.py`, `utils/environment.py`, `utils/dataclasses.py`), torchrun's manual, `torch/distributed/argparse_util.py`
(PET_…) and `torch/distributed/run.py` (PYTHON_EXEC), torch 2.13 (`_dynamo`, `c10/cuda/CUDACachingAllocator.cpp`),
DeepSpeed 0.18 (`comm/comm.py`, `mpi_discovery`), NVIDIA's cuBLAS manual, Open MPI, MPICH, PMIx, IBM JSM.
"""

from __future__ import annotations

from collections.abc import Mapping

#: Of launchers and their libraries: names that begin so.
PREFIXES = ("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_", "PET_", "TORCHELASTIC_", "TORCH_ELASTIC_")
#: The rank of a process, the address for all of them, and every other variable that overrides the lock.
NAMES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_NAME",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
    "NODE_RANK",
    "CROSS_RANK",
    "CROSS_SIZE",
    "LOCAL_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "FORK_LAUNCHED",
    "DS_ACCELERATOR",
    "PYTHON_EXEC",
    "NVIDIA_TF32_OVERRIDE",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "TORCHDYNAMO_DISABLE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TORCH_COMPILE_DISABLE",
)
#: Variables of MPI and the schedulers for each of their processes, launchers included: removed without a message.
MPI_PREFIXES = ("OMPI_COMM_WORLD_", "MV2_COMM_WORLD_", "PMI_", "PMIX_", "JSM_NAMESPACE_")
MPI_NAMES = ("MPI_LOCALRANKID", "MPI_LOCALNRANKS", "SLURM_PROCID", "SLURM_LOCALID")
#: The logs of torch: with an unknown name in it, torch cannot be imported.
LOGS = ("TORCH_LOGS",)
#: Variables that torch reads when it is imported, and their valid words, in any case: with another word torch cannot be
#: imported.
WORDS = {"TORCH_DISTRIBUTED_DEBUG": ("OFF", "INFO", "DETAIL")}
#: From Python 3.11 on `python -m` does not import from the working folder then: a spec's `types.py` is not Python's.
SAFE = {"PYTHONSAFEPATH": "1"}
#: The folders of data and results: a spec has keys for them, and the scripts take these from the submitting shell.
FOLDERS = {"RAT_DATA_DIR": "data.data_dir", "RAT_OUTPUT_DIR": "output_dir"}

#: The GPUs that a process sees: set by a scheduler in a job, or in the shell on a shared machine.
DEVICES = (
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "NVIDIA_VISIBLE_DEVICES",
)


def without(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the variables of launchers and MPI, for a single process."""
    begin, names = (*PREFIXES, *MPI_PREFIXES), (*NAMES, *MPI_NAMES)
    return {name: text for name, text in environment.items() if not name.startswith(begin) and name not in names}


def fault(name: str, value: str) -> str | None:
    """Return torch's objection to a variable's value, as the rest of a sentence; None if no objection is known."""
    words = WORDS.get(name)
    if words is None or value.upper() in words:
        return None
    return f"is `{value}`, and torch takes {', '.join(f'`{word}`' for word in words)}"


def reason(name: str) -> str | None:
    """Why no spec may set the variable, as the rest of a sentence; None if it may."""
    if name.startswith((*PREFIXES, *MPI_PREFIXES)) or name in (*NAMES, *MPI_NAMES):
        return "overrides the compiled values: launchers and their libraries read it"
    if name in FOLDERS:
        return f"overrides `{FOLDERS[name]}`"
    if name in DEVICES:
        return "overrides the choice of GPUs that a scheduler, or the shell, makes for each job"
    return None
