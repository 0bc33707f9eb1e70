"""Weights & Biases and TensorBoard: the files of an offline run, and no loss if a process is killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ratc_runtime.commands import sync
from ratc_runtime.tracking.interface import About
from ratc_runtime.tracking.journal import Journal

from tests.effort import HANGS_S
from tests.helpers.lockfile import environment, results, run_training, train_command, write_data, write_lock
from tests.helpers.servers import failing_server, free_port, point


def wandb_records(file: Path) -> Iterator[Any]:
    """Read a run's file: LevelDB's log format with wandb's header of seven bytes, records of protobuf."""
    from wandb.proto import wandb_internal_pb2

    content, at, pending = file.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        pending += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pending)
            pending = b""
            yield record


def wandb_curve(file: Path, name: str) -> list[tuple[int, float]]:
    found = []
    for record in wandb_records(file):
        if record.WhichOneof("record_type") == "history":
            values = {
                item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
            }
            if name in values:
                found.append((record.history.step.num or values.get("_step"), values[name]))
    return found


@pytest.mark.slow
def test_wandb_offline_and_tensorboard_continue_after_a_stop(project: Path) -> None:
    lock = write_lock(
        project / "compiled", logging__wandb=True, logging__tensorboard=True, logging__wandb_project="demo"
    )
    process = subprocess.Popen(
        train_command(lock),
        cwd=project,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 1/2  train loss"):
            (project / "out/STOP").touch()
            break
    rest, errors = process.communicate(timeout=HANGS_S)
    assert process.returncode == 0, errors
    assert "stopped as asked" in rest
    done = run_training(lock)
    assert done.returncode == 0, done.stderr
    assert "wandb:" not in errors + done.stderr
    files = sorted((project / "out/wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert len({file.name for file in files}) == 1
    steps = [step for file in files for step, _ in wandb_curve(file, "train/step_loss")]
    assert steps == [1, 2, 3, 4]
    records = list(wandb_records(files[0]))
    (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"][:1]
    assert run.project == "demo"
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["training"]["learning_rate"] == 0.003
    assert results(project / "out")["starts"]["number"] == 2

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(project / "out/tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/step_loss")] == [1, 2, 3, 4]
    assert "lock/text_summary" in events.Tags()["tensors"]


def wandb_about(folder: Path) -> About:
    options = {"wandb_project": "p", "wandb_mode": "offline"}
    return About("run", "name", "experiment", "", {}, {}, folder, options=options)


def wandb_steps(folder: Path) -> list[int]:
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    return [step for file in files for step, _ in wandb_curve(file, "loss")]


@pytest.mark.slow
def test_wandb_loses_no_point_if_its_process_is_killed(tmp_path: Path) -> None:
    """In a process of its own: wandb's process is killed after it took two points and before the third."""
    code = f"""
import json, time, psutil
from pathlib import Path
from ratc_runtime.tracking import delivery_thread
from ratc_runtime.tracking.interface import About
from ratc_runtime.tracking.journal import Journal
from ratc_runtime.tracking.wandb import Wandb

delivery_thread.PERIOD, delivery_thread.RETRY = 0.05, (0.05, 0.05)
folder = Path({str(tmp_path)!r})
options = {{"wandb_project": "p", "wandb_mode": "offline"}}
about = About("run", "name", "experiment", "", {{}}, {{}}, folder, options=options)
backend, journal = Wandb(about, {{}}), Journal(folder / "j")
backend.load()
delivery = delivery_thread.DeliveryThread(backend, journal)
point = lambda step: {{"kind": "metrics", "step": step, "time": 0, "values": {{"loss": float(step)}}}}
delivery.put(point(1))
delivery.put(point(2))
delivery.flush()
while journal._handed == 0:
    time.sleep(0.05)
(core,) = [child for child in psutil.Process().children() if "wandb-core" in child.name()]
core.kill()
core.wait()
delivery.put(point(3))
delivery.put({{"kind": "status", "status": "FINISHED"}})
print("left", delivery.close())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False, timeout=HANGS_S
    )
    assert "left 0" in done.stdout, done.stderr
    assert wandb_steps(tmp_path) == [1, 2, 3]


@pytest.mark.slow
def test_sync_sends_the_wandb_records_of_a_killed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tracking" / "run"
    folder.mkdir(parents=True)
    wandb_about(tmp_path).write(folder / "about.json")
    journal = Journal(folder / "wandb")
    journal.append([point(1, loss=1.0), point(2, loss=0.5)])
    journal.release()
    handed: list[list[str]] = []

    def wandb_sync(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        handed.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(sync, "_run_wandb", wandb_sync)
    assert sync.main([str(tmp_path)]) == 0
    # wandb's process has ended: it may write after the end of the run, and `wandb sync` reads what it wrote
    assert not [child for child in psutil.Process().children() if "wandb-core" in child.name()]
    assert wandb_steps(tmp_path) == [1, 2]
    assert "2 records written: Weights & Biases" in capfd.readouterr().out
    assert len(handed) == 1
    assert str(tmp_path / "wandb" / "offline-run-") in handed[0][-1]
    assert Journal(folder / "wandb").waiting() == 0


def test_r524_for_a_missing_tracker_before_the_start(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    (tmp_path / "wandb").mkdir()  # what wandb leaves wherever it ran is no package
    lock = write_lock(tmp_path / "compiled", logging__wandb=True)
    code = (
        "import sys; from ratc_runtime import preflight;"
        "sys.path[:] = ['.', *(p for p in sys.path if 'site-packages' not in p)];"
        f"sys.exit(preflight.main([{str(lock)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "error[R524]: the lock tracks with Weights & Biases, which is not installed" in done.stderr


def test_wandb_online_without_account_or_server_falls_back_to_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from ratc_runtime.tracking import wandb

    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")
    told = About(
        "run", "name", "experiment", "", {}, {}, tmp_path, options={"wandb_project": "p", "wandb_mode": "online"}
    )
    assert wandb.Wandb(told, {}).mode == "offline"
    assert "the run is recorded offline" in capfd.readouterr().err
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert wandb.Wandb(told, {}).mode == "online"
    with pytest.raises(OSError, match="refused"):
        wandb.reach_server()
    with failing_server(hangs=False) as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        with pytest.raises(OSError, match="500"):
            wandb.reach_server()
