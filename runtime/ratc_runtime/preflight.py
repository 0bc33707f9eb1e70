"""The checks before torch is imported: files, world size, batch arithmetic, the card.

Uses only the standard library, PyYAML and pydantic (and NVML's bindings, if the lock's device is cuda), so that a wrong
start is refused within a second. run.sh calls `python -m ratc_runtime.preflight lock.yaml` before the launcher;
`train.py` calls `check` again in every process, with the launcher's world size.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ratc_runtime.checks import first_weights
from ratc_runtime.checks.card import check_card
from ratc_runtime.checks.imports import check_entrypoint_imports, check_imports, is_found
from ratc_runtime.checks.processor import check_processor
from ratc_runtime.config import allocator, elastic, optimizers
from ratc_runtime.config.lock import Lock, read_lock
from ratc_runtime.config.program_lock import ProgramLock, read_any
from ratc_runtime.config.yaml_file import load_yaml, open_regular, sha256_of
from ratc_runtime.data.lengths import check_listed
from ratc_runtime.distributed import launch_environment
from ratc_runtime.errors import RuntimeFinding, warn
from ratc_runtime.models import allowed

# Read when compiling; at run time they have no effect.
COMPILE_TIME_PREFIX = "RAT_"
RUN_TIME_VARIABLES = frozenset({"RAT_DATA_DIR", "RAT_OUTPUT_DIR"})


def check_artifacts(lock: Lock | ProgramLock, folder: Path) -> None:
    """Raise R501 unless every artifact of the lock is in `folder` with the lock's hash."""
    for name, expected in lock.artifacts.items():
        path = folder / name
        try:
            found = sha256_of(path)
        except OSError as error:
            raise RuntimeFinding(
                "R501",
                f"artifact {name} cannot be read",
                f"{path}: {error.strerror or error}",
                "compile again, and keep the compiled files together",
            ) from None
        if found != expected:
            raise RuntimeFinding(
                "R501",
                f"artifact {name} is not the one that was compiled",
                f"lock:  {expected}\nfound: {found}",
                "change the spec and compile again instead of editing the artifact",
            )


def check_point(lock: Lock | ProgramLock, path: Path) -> None:
    """Raise R501 unless the array's table, whose hash the shared lock has, lists this point with this lock's hash."""
    table = path.resolve().parent / (lock.file("points.tsv") or "points.tsv")
    try:
        with open_regular(table) as file:
            rows = [line.split("\t") for line in file.read().decode("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise RuntimeFinding("R501", "the table of the array's points cannot be read", f"{table}: {error}") from None
    if not any(row[0] == lock.point and row[-1] == sha256_of(path) for row in rows[1:]):
        raise RuntimeFinding(
            "R501",
            f"the lock of point {lock.point} is not the one that was compiled",
            f"{table} does not have it with this file's hash",
            "change the spec and compile again instead of editing the lock",
        )


def _in_place_of(path: str, folder: Path, known: Mapping[str, Any]) -> list[str]:
    """Return files that are not in the lock and that Python may import instead of the lock's module."""
    suffixes = (".py", ".pyc", ".so", ".pyd")
    if not path.endswith(suffixes):
        return []  # no module, such as a script of the shell
    base = path.rpartition("/")[2].partition(".")[0]
    place = (folder / path).parent
    there = [*place.glob(f"{base}.*"), *(place / base).glob("__init__.*")]
    found = [file.relative_to(folder).as_posix() for file in there if file.suffix in suffixes and file.is_file()]
    return sorted(one for one in found if one not in known)


def check_own_code(lock: Lock | ProgramLock, folder: Path) -> None:
    """Raise R582 unless the user's own modules below the spec's `folder` are those of the lock. With
    `checkpoint.own_code: warn` this is a warning.
    """
    moved = []
    for path, module in (lock.own_code or {}).items():
        file = folder / path
        if Path(path).is_absolute() or ".." in Path(path).parts or not file.is_file():
            moved.append(f"{path} is gone")
        elif sha256_of(file) != module.digest:
            moved.append(f"{path} changed")
        else:
            moved += (
                f"{new} may be imported in place of {path}" for new in _in_place_of(path, folder, lock.own_code or {})
            )
    if moved and getattr(lock.checkpoint, "own_code", "strict") == "warn":
        warn(f"your own code differs from the compiled code: {', '.join(moved)}")
    elif moved:
        raise RuntimeFinding(
            "R582",
            "your own code differs from the compiled code",
            "\n".join(moved),
            "`ratc check` shows the differences; compile again to train with it, or set `checkpoint.own_code: warn`",
        )


def check_world_size(lock: Lock, environment: Mapping[str, str]) -> None:
    """Raise R502 unless the launcher started the lock's number of processes, and set their rendezvous address."""
    text, started = environment.get("WORLD_SIZE", "1"), lock.parallel.world_size
    if text != str(started):
        message = f"the launcher started {text} process(es), the lock says {started}"
        note = "WORLD_SIZE as the launcher set it" if "WORLD_SIZE" in environment else "WORLD_SIZE is not set"
    else:
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
        message, note = "the launcher's variables make no sense", f"WORLD_SIZE is set, and {', '.join(missing)} not"
        if "WORLD_SIZE" not in environment or not missing:
            return
    raise RuntimeFinding(
        "R502",
        message,
        note,
        "start training with the compiled run.sh, or compile for this number of processes; if no launcher is there,"
        f" {launch_environment.UNSET}",
        everywhere=launch_environment.is_started(environment),
    )


def check_batch(lock: Lock | ProgramLock, folder: Path) -> None:
    """Raise R503 unless lock, deepspeed.json and accelerate.yaml have the same split of a batch."""
    training, world = lock.training, lock.parallel.world_size
    micro, accumulation = training.micro_batch_size, training.gradient_accumulation_steps
    product = micro * accumulation * world
    if product != training.global_batch_size:
        raise RuntimeFinding(
            "R503",
            f"the lock's global batch is {training.global_batch_size}, its parts make {product}",
            f"micro-batch {micro} x accumulation {accumulation} x world size {world}",
            "compile the spec again",
        )
    # A section the target has no use for is absent; a file the lock lists was found by check_artifacts.
    deepspeed, accelerate = lock.file("deepspeed.json"), lock.file("accelerate.yaml")
    if deepspeed and isinstance(lock, Lock):
        expected: dict[str, Any] = {
            "train_batch_size": training.global_batch_size,
            "train_micro_batch_size_per_gpu": micro,
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": lock.training.gradient_clipping or 0.0,
            "zero_optimization.stage": lock.engine.zero_stage,
        }
        _compare("deepspeed.json", _read_json(folder / deepspeed), expected)
    if accelerate:
        _compare("accelerate.yaml", load_yaml(folder / accelerate), {"num_processes": world})


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RuntimeFinding("R503", f"{path.name} is not valid JSON", str(error)) from None


def _compare(name: str, content: Any, expected: Mapping[str, Any]) -> None:
    for dotted, value in expected.items():
        found = content
        for key in dotted.split("."):
            found = found.get(key) if isinstance(found, dict) else None
        if found is None and value == 0:
            continue  # absent means off, in both consumers
        if found != value or isinstance(found, bool):
            raise RuntimeFinding(
                "R503",
                f"{name} says {dotted}: {json.dumps(found, default=str)}, the lock {json.dumps(value)}",
                "the reader of that file would train something else than the lock",
                "compile the spec again",
            )


def check_attention(lock: Lock) -> None:
    """Raise R553 if the lock's attention needs Triton or a newer torch. Neither is imported."""
    if lock.model.attention_memory != "fused":
        return
    instead = "or compile the spec with model.attention_memory: chunked"
    if importlib.util.find_spec("triton") is None:
        raise RuntimeFinding(
            "R553",
            "the lock says attention_memory: fused, but Triton is not installed",
            f"{sys.executable} finds no module triton",
            f"install the triton that your torch asks for, {instead}",
        )
    torch = importlib.util.find_spec("torch")
    flex = Path(torch.origin or "").parent / "nn/attention/flex_attention.py" if torch else Path()
    if not flex.is_file() or "class AuxRequest" not in flex.read_text(encoding="utf-8", errors="replace"):
        raise RuntimeFinding(
            "R553",
            "the lock says attention_memory: fused, and this torch is too old for it",
            f"{flex} has no AuxRequest, by which FlexAttention gives its log-sum-exp",
            f"install a later torch, {instead}",
        )


def warn_of_variables(environment: Mapping[str, str]) -> None:
    """Warn of RAT_* variables that only the compiler reads: they have no effect now."""
    for name in sorted(environment):
        if name.startswith(COMPILE_TIME_PREFIX) and name not in RUN_TIME_VARIABLES:
            warn(f"{name} is read when compiling; it does not change this run (the lock decides)")


def check_trackers(lock: Lock) -> None:
    """Raise R524 if the package of a tracker in the lock is not installed: missing curves are noticed late."""
    if lock.logging.wandb:
        found = importlib.util.find_spec("wandb")
        # A folder `wandb`, which that package makes wherever it runs, would be found as a package without origin.
        if found is None or found.origin is None:
            raise RuntimeFinding(
                "R524",
                "the lock tracks with Weights & Biases, which is not installed",
                f"{sys.executable} finds no package wandb",
                "pip install 'ratc[wandb]', or turn `logging.use_wandb` off and compile again",
            )


def check(lock_path: Path, environment: Mapping[str, str], launched: bool, own_folder: Path | None = Path()) -> Lock:
    """Read the lock and run every check that needs no torch; return the lock, of an elastic one the row of this start.

    `launched`: a launcher has set the world size, which is not yet the case for run.sh's own call. `own_folder` is the
    spec's folder with own modules; with None they are not checked.
    """
    lock = read_lock(lock_path)
    folder = lock_path.resolve().parent
    check_artifacts(lock, folder)
    if lock.point is not None:
        check_point(lock, lock_path)
    if own_folder is not None:
        allowed.check_modules(list(lock.own_code or {}), own_folder)
        check_own_code(lock, own_folder)
        check_imports(lock, own_folder)
        by_launcher = lock.engine.use_accelerate or lock.parallel.world_size > 1
        if by_launcher and not launched and _is_searched_first(own_folder, environment):
            allowed.check_hidden(own_folder)
    check_batch(lock, folder)
    lock = elastic.of_start(lock, environment)
    if launched:
        check_world_size(lock, environment)
    check_processor(lock)
    check_card(lock, environment)
    check_attention(lock)
    if launched:
        allocator.check_variables(lock, environment)
    check_trackers(lock)
    optimizers.check_package(lock.training.optimizer)
    return lock


def _is_searched_first(folder: Path, environment: Mapping[str, str]) -> bool:
    """Return whether a launcher started in a folder imports the folder's modules before Python's own.

    Only Python from 3.11 on omits the working folder, if PYTHONSAFEPATH is set. PYTHONPATH may still hold it: an empty
    entry is the working folder.
    """
    if not environment.get("PYTHONSAFEPATH") or sys.version_info < (3, 11):
        return True
    members = (environment.get("PYTHONPATH") or os.devnull).split(os.pathsep)
    return any(Path(member).resolve() == folder.resolve() for member in members)


def check_program(
    lock: ProgramLock, lock_path: Path, environment: Mapping[str, str], own_folder: Path = Path()
) -> None:
    """Run every check for the lock of a spec's own program. `own_folder` is the spec's."""
    elastic.of_start(lock, environment)
    folder = lock_path.resolve().parent
    check_artifacts(lock, folder)
    if lock.point is not None:
        check_point(lock, lock_path)
    check_own_code(lock, own_folder)
    check_entrypoint(lock, own_folder)
    check_entrypoint_imports(lock, own_folder)
    check_batch(lock, folder)
    check_processor(lock)
    check_card(lock, environment)


def check_entrypoint(lock: ProgramLock, own_folder: Path) -> None:
    """Raise R509 unless this node has the script, module or command of the lock, and the launcher."""
    entry = lock.entrypoint
    missing = []
    if entry.kind == "script" and not (own_folder / entry.program).is_file():
        missing.append(f"the script {own_folder.resolve() / entry.program}")
    elif entry.kind == "module" and not is_found(entry.program, own_folder):
        missing.append(f"the module {entry.program}, looked for in {own_folder.resolve()} and by {sys.executable}")
    elif entry.kind == "command" and shutil.which(entry.program) is None:
        missing.append(f"the command {entry.program}, looked for on PATH")
    package = {"accelerate": "accelerate", "torchrun": "torch"}.get(entry.launcher)
    launched = entry.launcher == "accelerate" or lock.parallel.world_size > 1
    if package and launched and importlib.util.find_spec(package) is None:
        missing.append(f"the package {package}, whose launcher starts the processes, by {sys.executable}")
    if missing:
        raise RuntimeFinding(
            "R509",
            "the program of the run is not found",
            "\n".join(missing),
            "correct `entrypoint` in the spec and compile again, or install the missing program",
        )


def _check_health(lock: Lock | ProgramLock, given: argparse.Namespace) -> None:
    """Raise R617, R618, R620, R621 or R622 unless the nodes of this start are healthy."""
    from ratc_runtime.health import check as health  # only here: the other checks take two tenths of a second

    start = health.start_of(lock, os.environ, given.start, given.node, given.head, given.port)
    health.check(lock, start, given.output_dir or Path(os.environ.get("RAT_OUTPUT_DIR") or lock.output_dir))


def main(argv: list[str] | None = None) -> int:
    """Check a lock against its files and this machine; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m ratc_runtime.preflight",
        description="Check a lock against the files beside it and this machine's card.",
    )
    parser.add_argument("lock", type=Path, help="the compiled lock.yaml")
    parser.add_argument(
        "--data-dir", type=Path, help="folder of the data (default: RAT_DATA_DIR, or the folder in the lock)"
    )
    parser.add_argument(
        "--output-dir", type=Path, help="folder of the results (default: RAT_OUTPUT_DIR, or the folder in the lock)"
    )
    parser.add_argument("--fresh", action="store_true", help="start from the beginning instead of continuing")
    parser.add_argument("--health", action="store_true", help="test the nodes of this start instead, all at once")
    parser.add_argument("--start", default="", help="with --health: id of this start of the job")
    parser.add_argument("--node", type=int, default=0, help="with --health: rank of this node")
    parser.add_argument("--head", default="localhost", help="with --health: name of the first node")
    parser.add_argument("--port", type=int, default=0, help="with --health: port that is free on the first node")
    # The script's other arguments are for training.
    arguments, _ = parser.parse_known_args(argv)
    try:
        lock = read_any(arguments.lock)
        if arguments.health:
            _check_health(lock, arguments)
            return 0
        if isinstance(lock, ProgramLock):
            check_program(lock, arguments.lock, os.environ)
            return 0
        lock = check(arguments.lock, os.environ, launched=False)
        check_listed(lock, arguments.data_dir or Path(os.environ.get("RAT_DATA_DIR") or lock.data.data_dir))
        output_dir = arguments.output_dir or Path(os.environ.get("RAT_OUTPUT_DIR") or lock.output_dir)
        if first_weights.are_needed(lock, output_dir, arguments.fresh):
            first_weights.check(lock, Path())
    except RuntimeFinding as finding:
        print(finding.render(), file=sys.stderr)
        return 1
    warn_of_variables(os.environ)
    allocator.warn_of_variables(lock, os.environ)
    return 0


if __name__ == "__main__":
    sys.exit(main())
