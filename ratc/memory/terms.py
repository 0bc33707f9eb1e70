"""Memory that no trace sees, by card: each term with its bytes and its source.

Every term is an upper bound, mostly on reports of others, so that a choice errs towards fitting: on an H200, 1.35 GiB
were measured outside the allocator (0.60 of them before any process had started), and 1.68 GiB are allowed for.
cuBLAS's workspaces are not a term: the caching allocator holds them, and the trace has them.
"""

from __future__ import annotations

from dataclasses import dataclass

MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class Device:
    """A card: its name, its memory in bytes as the driver reports it, and its compute capability (None: not NVIDIA).

    ``fraction`` is the share of the memory that a process's allocator may reserve (`per_process_memory_fraction`).
    """

    name: str
    memory_bytes: int
    compute_capability: str | None
    fraction: float = 1.0

    @property
    def capability(self) -> tuple[int, int]:
        """Major and minor, (0, 0) if there is none."""
        major, _, minor = (self.compute_capability or "0.0").partition(".")
        return int(major), int(minor or 0)

    @property
    def kernels(self) -> str:
        """The compute capability with the same traces as this card's: the attention kernel changes only at these.

        Below 7.5 and within 8.6 to 8.9 the choice is the same (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp).
        """
        capability = self.capability
        for first, name in (((12, 0), "12.0"), ((10, 0), "10.0"), ((9, 0), "9.0"), ((8, 6), "8.6"), ((8, 0), "8.0")):
            if capability >= first:
                return name
        return "7.0" if capability >= (7, 0) else "6.0"


@dataclass(frozen=True, slots=True)
class Term:
    """Memory on the device outside the caching allocator: ``bytes_``, and ``source``, the source of that number."""

    name: str
    bytes_: int
    source: str


def outside(device: Device, process_groups: int, deepspeed: bool = False) -> tuple[Term, ...]:
    """Return the terms in use outside the caching allocator, which reduce the bytes that it can reserve.

    ``process_groups`` have a communicator each; one process has none.
    """
    several = [nccl(device, process_groups)] if process_groups else [_one_process()] if deepspeed else []
    found = (_driver(device), _context(device), *several)
    free = device.memory_bytes - sum(term.bytes_ for term in found)
    allowed = int((device.memory_bytes - found[0].bytes_) * device.fraction)
    return (*found, _refused(free - allowed, device.fraction)) if allowed < free else found


def _refused(bytes_: int, fraction: float) -> Term:
    source = f"`per_process_memory_fraction:{fraction:g}` of the environment"
    return Term("refused by the allocator", bytes_, source)


def _driver(device: Device) -> Term:
    # An A100 40GB of 40536 MiB is 40339 MiB to CUDA (0.5 %: bottlerocket-os/bottlerocket#3873); an H100 of 81559 MiB is
    # 79.11 GiB to torch (0.7 %), an RTX 4090 of 24564 MiB is 23.65 GiB (1.4 %), both in out-of-memory messages of
    # public issues.
    share = 0.015 if device.capability >= (8, 9) and device.capability != (9, 0) else 0.0075
    source = "total memory of CUDA against NVML's: 0.5 % (A100), 0.7 % (H100), 1.4 % (RTX 4090) in public reports"
    return Term("kept by the driver", int(device.memory_bytes * share), source)


def _context(device: Device) -> Term:
    # About 300 MB with lazy module loading, more before CUDA 11.7 (pytorch/pytorch#107667); more code is loaded as
    # kernels are used.
    size = 640 * MIB if device.capability >= (9, 0) else 512 * MIB
    return Term("CUDA context and kernels", size, "pytorch/pytorch#107667: about 300 MB, growing with the kernels used")


def _one_process() -> Term:
    # 13.946 - 11.910 GB beside the allocator for GPT-2 with ZeRO, 21.328 - 19.879 GB without.
    return Term("NCCL communicator", 640 * MIB, "one DeepSpeed process on an H200: 560 MiB more than without, measured")


def nccl(device: Device, process_groups: int) -> Term:
    """Return the bytes of NCCL's channels in the communicators of some process groups."""
    # A connection of a channel takes 10 MiB (NVIDIA/nccl#1685). Rings and trees over NVLink use up to 32 channels with
    # some three connections; over PCIe a few channels. Each communicator has its own, and all-to-all would take more
    # (NVIDIA/nccl#864).
    nvlink = device.capability in ((6, 0), (7, 0), (8, 0), (9, 0), (10, 0), (10, 3))
    size = process_groups * (GIB if nvlink else 256 * MIB)
    source = "NVIDIA/nccl#1685: 10 MiB a connection; " + ("32 channels x 3" if nvlink else "8 channels x 3")
    groups = "" if process_groups == 1 else f" of {process_groups} process groups"
    return Term(f"NCCL channels{groups}", size, source)
