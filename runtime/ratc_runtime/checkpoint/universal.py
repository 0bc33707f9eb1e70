"""Shards of DeepSpeed's ZeRO for another number of processes, by DeepSpeed's own converter in a process of its own.

`python -m ratc_runtime.checkpoint.universal SHARDS TARGET` is that process: it uses no GPU and joins no group.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

#: Processes that read shards at the same time.
READERS = 4


def writers(shards: Path) -> int:
    """Return the number of processes that wrote a folder of shards; 0 if the states of its optimizer are whole."""
    return len(list(shards.glob("*zero_pp_rank_*_optim_states.pt")))


def convert(shards: Path, target: Path) -> None:
    """Write the tensors of a folder of shards into `target`, each whole. Raises OSError."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", __name__, str(shards), str(target)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise OSError(f"DeepSpeed cannot convert {shards}: {said[-1][:400] if said else f'status {done.returncode}'}")


def main(argv: list[str] | None = None) -> int:
    """Convert by the command line."""
    parser = argparse.ArgumentParser(prog=f"python -m {__name__}", description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("target", type=Path)
    given = parser.parse_args(argv)
    from deepspeed.checkpoint import ds_to_universal

    ds_to_universal.main(
        argparse.Namespace(
            input_folder=str(given.shards),
            output_folder=str(given.target),
            num_extract_workers=min(READERS, os.cpu_count() or 1),
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            # The converter's own entries, which only Megatron writes.
            inject_missing_state=True,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
