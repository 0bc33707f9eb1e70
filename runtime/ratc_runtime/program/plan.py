"""The interface of ratc for a program of the spec's own: `import ratc_runtime; plan = ratc_runtime.plan()`.

    plan = ratc_runtime.plan()
    loader = DataLoader(data, batch_size=plan["micro_batch_size"], num_workers=plan["num_workers"])
    for step in range(first, last):
        ...
        if plan.should_stop():      # at a step boundary; the same answer on every rank
            save(); plan.stopped(); break
    else:
        plan.finished(accuracy=0.93)
    plan.leave()                    # with several processes: the last line

Only the standard library; with several processes `should_stop` needs torch.distributed to be initialised.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ratc_runtime.distributed.stop import STOP_FILE, STOPPED_FILE
from ratc_runtime.errors import RuntimeFinding

#: The variable that names the lock; every value that is handed over has one of its own beside it.
LOCK, DATA_DIR, OUTPUT_DIR = "RATC_LOCK", "RATC_DATA_DIR", "RATC_OUTPUT_DIR"
CHECKPOINT_DIR, RESUME = "RATC_CHECKPOINT_DIR", "RATC_RESUME"
#: Files for programs that are not Python: look for the first, make the second when all is saved.
STOP, STOPPED = "RATC_STOP_FILE", "RATC_STOPPED_FILE"


class ProgramPlan(Mapping[str, Any]):
    """The values of the lock by name (`micro_batch_size`, `precision`, …), and messages to and from the job.

    Raises R505 if the lock cannot be read or is that of the built-in loop, R503 if this start differs from its lock.
    """

    def __init__(self, lock_path: Path, environment: Mapping[str, str]) -> None:
        from ratc_runtime.config import elastic
        from ratc_runtime.config.program_lock import ProgramLock, read_any

        lock = read_any(lock_path)
        if not isinstance(lock, ProgramLock):
            raise RuntimeFinding(
                "R505",
                f"{lock_path} is the lock of the built-in loop",
                "this needs the lock of a spec with `entrypoint`",
            )
        lock = elastic.of_start(lock, environment)
        self.lock, self.lock_path = lock, lock_path
        self.data_dir = Path(environment.get(DATA_DIR) or lock.data.data_dir)
        self.output_dir = Path(environment.get(OUTPUT_DIR) or lock.output_dir)
        #: For checkpoints of this very program: another script, argument or value has a folder of its own.
        self.checkpoint_dir = Path(environment.get(CHECKPOINT_DIR) or self.output_dir / "checkpoints")
        #: Whether to go on from what is there; false with `resume: never` and `--fresh`.
        self.resume = environment.get(RESUME) != "false"
        self._values = lock.handed()
        self._rank = int(environment.get("RANK", "0"))

    def __getitem__(self, name: str) -> Any:
        """Return a value of the plan. Raises KeyError, which names them all, for another name."""
        if name not in self._values:
            raise KeyError(f"the plan has no {name!r:.80}: it has {', '.join(self._values)}")
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def verify(self, **found: Any) -> None:
        """Raise R503 unless the program runs with the values of the plan: `verify(micro_batch_size=8, …)`.

        Raises KeyError for a name that no plan has.
        """
        wrong = [
            f"{name}: {has!r:.80}, the lock says {self[name]!r}" for name, has in found.items() if has != self[name]
        ]
        if wrong:
            raise RuntimeFinding(
                "R503",
                "the program runs with other values than the lock",
                "\n".join(wrong),
                "pass the values of the plan: placeholders in `entrypoint.args`, or `ratc_runtime.plan()`",
            )

    def should_stop(self) -> bool:
        """Return whether the job asked to save and stop. Every rank must call this: they agree, by one all-reduce."""
        asked = self._rank == 0 and (self.output_dir / STOP_FILE).exists()
        distributed = sys.modules.get("torch.distributed")
        if distributed is None or not distributed.is_available() or not distributed.is_initialized():
            return asked
        import torch

        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        told = torch.tensor([float(asked)], device=device)
        distributed.broadcast(told, src=0)
        return bool(told.item())

    def memory(self) -> dict[str, Any]:
        """Return the memory that the run used, for `finished(memory=…)`, and say it beside the lock's prediction.

        Sizes in bytes, the maximum over all ranks, as in results.json of the built-in loop (`MemoryUse`). A warning
        says if a peak differs from the prediction by more than its margin. Every rank must call this; it needs torch.
        """
        from ratc_runtime.program.memory import compared

        return compared(self.lock)

    def stopped(self) -> None:
        """Leave word that all is saved and the job may go on later; then end the program with status 0."""
        if self._rank == 0:
            (self.output_dir / STOPPED_FILE).write_text(f"the file {STOP_FILE}\n")

    def finished(self, **results: Any) -> None:
        """Write results.json, on rank 0: scores by name. That the run is finished the job adds when all has ended."""
        from ratc_runtime.output.results import write_results

        if self._rank == 0:
            write_results(self.output_dir, results)

    def leave(self) -> None:
        """End this process with status 0 if torch has a process group; else return. Every rank must call this.

        It is for the last line of a program with several processes: they wait for each other, and the interpreter's
        shutdown is left out, in which gloo, the backend on CPUs, now and then aborts a process. With it functions of
        `atexit` are left out, and what is buffered in open files is lost: close them, and trackers, before.
        """
        if "torch.distributed" in sys.modules:
            from ratc_runtime.distributed import world

            world.leave(0)


def plan(environment: Mapping[str, str] | None = None) -> ProgramPlan:
    """Return the plan of this run; raise R502 if no script of ratc's started it, R505 if its lock cannot be read."""
    environment = os.environ if environment is None else environment
    if not environment.get(LOCK):
        raise RuntimeFinding(
            "R502",
            "there is no plan: the program was not started by a script of ratc",
            f"{LOCK} is not set",
            "start the compiled run.sh, or submit the compiled job",
        )
    return ProgramPlan(Path(environment[LOCK]), environment)
