"""The cause that is found in logs, results and the record of a scheduler."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from ratc.diagnostics import Severity, Source, Span
from ratc.plan import Value, Values
from ratc.scheduler.dialect import AccountingRecord, End
from ratc.why.causes import the_cause
from ratc.why.evidence import Evidence

LOCK = Values(
    {
        "training.epochs": Value(10, "spec"),
        "training.micro_batch_size": Value(8, "derived"),
        "job.walltime_seconds": Value(3600, "spec"),
    }
)

#: The same of a program of the user's.
OWN = Values({**LOCK, "entrypoint.program": Value("train.py", "spec")})


def evidence(*logs: str, end: End | None = None, record: dict[str, Any] | None = None, **more: Any) -> Evidence:
    """Evidence with logs `log0`, `log1` …, of a job that ended so, and of a spec that says everything on a line of its
    own."""
    sources = tuple(Source(f"log{number}", text) for number, text in enumerate(logs))
    records = (AccountingRecord("7", end.name, end, **(record or {})),) if end else ()
    return Evidence(LOCK, sources, records, "7" if end else None, "outputs/demo", settings=settings(), **more)


def settings() -> Values:
    spec = Source("spec.yaml", "")
    paths = ("resources.walltime", "resources.memory", "data.data_dir", "training.batch_size", "environment.venv")
    return Values({path: Value("x", "spec", span=Span(spec, n, 3, n, 4)) for n, path in enumerate(paths, 1)})


TRACEBACK = """\
Traceback (most recent call last):
  File "/opt/venv/lib/python3.11/site-packages/torch/nn/modules/module.py", line 1, in forward
    return f(x)
  File "/home/me/net.py", line 12, in forward
    raise ValueError("odd")
  File "/opt/venv/lib/python3.11/site-packages/torch/functional.py", line 3, in check
ValueError: odd
"""


@pytest.mark.parametrize(
    ("given", "code", "place", "words"),
    [
        (evidence(end=End.RUNNING), "R600", None, "job 7 is running"),
        (evidence(end=End.WAITING, record={"reason": "Resources"}), "R600", None, "the reason Resources"),
        (evidence(is_done=True, end=End.WELL), "R600", None, "outputs/demo/results.json"),
        (evidence(results={"status": "finished"}), "R600", None, "has finished"),
        (
            evidence("ok\nslurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 1 DUE TO TIME LIMIT ***"),
            "R601",
            "log0:2",
            "1 h",
        ),
        (evidence(end=End.TIME, record={"limit_s": 120}), "R601", None, "walltime of 2 min"),
        (evidence(end=End.MEMORY), "R602", None, "host memory"),
        (evidence("x\nslurmstepd: error: Detected 1 oom_kill event in StepId=7.0."), "R602", "log0:2", "host memory"),
        (evidence(end=End.NODE, record={"hosts": "n[1-2]"}), "R603", None, "n[1-2]"),
        (evidence("srun: error: Node failure on n2\nsrun: error: n2: task 1: Killed"), "R603", "log0:1", "lost a node"),
        (evidence(end=End.CANCELLED, record={"reason": "by 1000"}), "R604", None, "cancelled by 1000"),
        (evidence("slurmstepd: error: *** JOB 7 CANCELLED AT 1 DUE TO PREEMPTION ***"), "R604", "log0:1", "preempted"),
        (evidence(end=End.FAILED, stopped="the file STOP\n"), "R604", None, "by the file STOP"),
        (evidence("a\nModuleNotFoundError: No module named 'monai'"), "R605", "log0:2", "`monai`"),
        (evidence("node.sh: line 3: nvidia-smi: command not found"), "R605", "log0:1", "`nvidia-smi`"),
        (
            evidence("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"),
            "R606",
            "log0:1",
            "out of memory",
        ),
        (evidence("OSError: [Errno 28] No space left on device: '/scratch/x'"), "R607", "log0:1", "`/scratch/x`"),
        (evidence("RuntimeError: DataLoader worker is killed by signal: Bus error."), "R607", "log0:1", "bus error"),
        (
            evidence("torch.distributed.DistNetworkError: the client socket has timed out"),
            "R608",
            "log0:1",
            "lost each other",
        ),
        (evidence(TRACEBACK), "R609", "log0:7", "ValueError: odd"),
        (evidence("12:00 ratc: no port is free on n1: 100 were tried"), "R610", "log0:1", "no port is free"),
        (
            evidence("WANDB_API_KEY: is named under secrets in the spec and must be set"),
            "R610",
            "log0:1",
            "must be set",
        ),
        (
            evidence("mkdir: cannot create directory \u2018../taken/a b\u2019: Not a directory\n", end=End.FAILED),
            "R607",
            "log0:1",
            "at `../taken/a b`: the folder cannot be made",
        ),
        (
            evidence("step 1\nsrun: error: n1: task 0: Exited with exit code 1\n", end=End.FAILED),
            "R615",
            "log0:2",
            "without a message",
        ),
        (evidence("", "step 1\n", end=End.FAILED), "R615", "log1:1", "ended without a message"),
        (evidence("job.sh: line 12:  4711 Killed   python train.py\n", end=End.FAILED), "R615", "log0:1", "signal 9"),
        (evidence("error[R567]: the program was ended by signal 9\n", end=End.FAILED), "R615", "log0:1", "signal 9"),
        (evidence("step 1\n", end=End.FAILED, record={"status": 137}), "R615", "log0:1", "signal 9"),
        (
            evidence(
                "error[R514]: rank 0 has lost the other processes\n  note: Connection closed by peer\n",
                "  exitcode  : -9 (pid: 31181)  (SIGKILL)\n  traceback : Signal 9 (SIGKILL) received by PID 31181\n",
                end=End.FAILED,
            ),
            "R615",
            "log1:2",
            "signal 9",
        ),
        (evidence("using default skills, val_error=0.3\n", end=End.FAILED), "R615", "log0:1", "without a message"),
        (evidence("step 1\n", end=End.FAILED, record={"status": 3}), "R611", "log0:1", "no known cause was found"),
        (
            evidence("step 1\n", "rank1: Watchdog caught collective operation timeout: WorkNCCL(SeqNum=9)\nstep 1\n"),
            "R608",
            "log1:1",
            "collective operation timeout",
        ),
        (evidence("  exitcode  : -9 (pid: 31181)\n"), "R615", "log0:1", "signal 9"),
        (evidence("/usr/bin/python3: No module named pkg.train\n"), "R605", "log0:1", "`pkg.train`"),
        (
            evidence("python: can't open file '/x/train.py': [Errno 2] No such file\n"),
            "R605",
            "log0:1",
            "`/x/train.py`",
        ),
        (
            evidence('Lmod has detected the following error: The following module(s) are unknown: "cuda/99"\n'),
            "R605",
            "log0:1",
            "`cuda/99`",
        ),
        (evidence("ERROR: Unable to locate a modulefile for 'cuda/99'\n"), "R605", "log0:1", "`cuda/99`"),
        (evidence("python: /lib64/libc.so.6: version `GLIBC_2.32' not found\n"), "R605", "log0:1", "`GLIBC_2.32`"),
        (
            evidence("train.py: error: unrecognized arguments: --foo\n", end=End.FAILED, record={"status": 2}),
            "R610",
            "log0:1",
            "unrecognized arguments: --foo",
        ),
        (
            evidence("main.py fit: error: unrecognized arguments: --x\n"),
            "R610",
            "log0:1",
            "unrecognized arguments: --x",
        ),
        (evidence("[rank0]: t.py: error: unrecognized arguments: --x\n"), "R610", "log0:1", "unrecognized"),
        (evidence("error: Unrecognized arguments: --x\n"), "R610", "log0:1", "Unrecognized arguments"),
        (
            evidence(TRACEBACK.replace("odd", "Some specified arguments are not used by the HfArgumentParser: ['-x']")),
            "R610",
            "log0:7",
            "['-x']",
        ),
        (evidence("t.py: error: unrecognized arguments: --x\ngoing on\n" + TRACEBACK), "R609", "log0:9", "odd"),
        (evidence("cuInit: no CUDA-capable device is detected\nepoch 1\n" + TRACEBACK), "R609", "log0:9", "odd"),
        (evidence("x.sh: line 3: 12 Killed  helper\ngoing on\n" + TRACEBACK), "R609", "log0:9", "odd"),
        (
            evidence("RuntimeError: DataLoader worker (pid 12) is killed by signal: Killed. \n"),
            "R615",
            "log0:1",
            "signal 9",
        ),
        (evidence("Error: No such option: --foo\n"), "R610", "log0:1", "No such option: --foo"),
        (
            evidence("RuntimeError: The NVIDIA driver on your system is too old (found version 11040).\n"),
            "R616",
            "log0:1",
            "driver on your system is too old",
        ),
        (evidence("step 1\n", end=End.WELL), "R600", None, "job 7 ended without an error"),
        (evidence("step 1\n", end=End.WELL, stopped="the file STOP\n"), "R604", None, "by the file STOP"),
        (evidence("step 1\n", "this failed\nstep 1\n", end=End.FAILED), "R611", "log1:1", "no known cause was found"),
        (evidence("step 1\nLoss is nan, stopping\n", end=End.FAILED), "R611", "log0:2", "no known cause was found"),
        (evidence("step 1\nCannot go on\n", end=End.FAILED), "R611", "log0:2", "no known cause was found"),
        (evidence("", end=End.FAILED), "R611", None, "no known cause was found"),
        (evidence("step 1\nstep 2\n"), "R611", "log0:2", "no known cause was found"),
        (evidence(), "R611", None, "no known cause was found"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("R6") else "",
)
def test_evidence_of_a_run_gives_its_cause(given: Evidence, code: str, place: str | None, words: str) -> None:
    cause = the_cause(given)
    assert (cause.code, cause.span and cause.span.place.rpartition(":")[0]) == (code, place)
    assert words in " ".join((cause.message, *cause.notes))
    assert (cause.severity is Severity.NOTE) == (code == "R600")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("warning: no fused optimizer: ModuleNotFoundError: No module named 'apex'", "R605"),
        ("Matplotlib: /home/u/.config: Permission denied, a temporary folder is used", "R607"),
        ("CUDA out of memory. Trying again with batch 2", "R606"),
        ("node.sh: line 3: nvidia-smi: command not found", "R605"),
    ],
)
def test_an_exception_that_ended_the_program_precedes_lines_that_it_handled(line: str, code: str) -> None:
    assert the_cause(evidence(f"{line}\n")).code == code
    cause = the_cause(evidence(f"{line}\n{TRACEBACK}"))
    assert (cause.code, cause.message) == ("R609", "ValueError: odd")
    assert the_cause(evidence(f"{line}\n", TRACEBACK)).code == "R609", "in the log of another node"


def traceback_of(last: str, before: str = "") -> str:
    frame = '  File "/home/me/net.py", line 12, in forward'
    lines = ("Traceback (most recent call last):", frame, "    x = f(y)", last)
    return "".join(f"{before}{line}\n" for line in lines)


@pytest.mark.parametrize(
    ("logs", "code"),
    [
        # What another process's end raises does not hide the cause that stands elsewhere.
        (("node.sh: line 3: torchrun: command not found\n", traceback_of("a.b.RendezvousTimeoutError")), "R605"),
        ((traceback_of("TimeoutError: the client socket has timed out"), "sh: train: command not found\n"), "R605"),
        (("x: No space left on device\n", traceback_of("KeyboardInterrupt")), "R607"),
        (("train: command not found\nException ignored in: <f>\n" + traceback_of("TypeError: no"),), "R605"),
        # Of these errors hardly a program goes on.
        (
            ("  what():  CUDA out of memory. Tried to allocate 2 GiB\n" + traceback_of("RuntimeError: Broken pipe"),),
            "R606",
        ),
        (
            ("10:00 ERROR trainer: CUDA out of memory. Tried to allocate 2 GiB\n" + traceback_of("my.Aborted: x"),),
            "R606",
        ),
        (("wget: /x: No space left on device\n" + traceback_of("FileNotFoundError: '/x'"),), "R607"),
        (("1: torch.OutOfMemoryError: CUDA out of memory.\n" + traceback_of("SystemExit: 1"),), "R606"),
        # Tracebacks in other forms.
        (("x: Permission denied\n" + traceback_of("ValueError: x", "2026-11-30T01:00:00 "),), "R609"),
        (("x: Permission denied\n" + traceback_of("ValueError: x", "0: "),), "R609"),
        (("x: Permission denied\n" + traceback_of("my.Odd : x").replace("    x", "    a(\n" * 8 + "    x"),), "R609"),
        (("x: Permission denied\n╭─ Traceback (most recent call last) ─╮\n│ a.py:3 │\n╰─╯\nValueError: x\n",), "R609"),
        (
            (
                "x: Permission denied\n  + Exception Group Traceback (most recent call last):\n"
                '  |   File "a.py", line 1\n  | ExceptionGroup: x (1 sub-exception)\n  +-+------ 1 ------\n'
                '    | Traceback (most recent call last):\n    |   File "a.py", line 1\n    | ValueError: 1\n',
            ),
            "R609",
        ),
    ],
)
def test_the_first_error_is_told_from_those_that_follow_it(logs: tuple[str, ...], code: str) -> None:
    assert the_cause(evidence(*logs, end=End.FAILED)).code == code


#: An error that a program handled, and a traceback in which the exception has a name of its own.
HANDLED = "Matplotlib: x: Permission denied, a temporary folder is used\n"


@pytest.mark.parametrize(
    "log",
    [
        HANDLED + "10%|#   | 3/30 [00:01]" + traceback_of("my.Odd: bad"),
        HANDLED + "2026-11-30 01:00:00 ERROR x: " + traceback_of("my.Odd: bad"),
        HANDLED
        + "".join(f"10:00:0{n} [rank0]: {line}\n" for n, line in enumerate(traceback_of("my.Odd: bad").splitlines())),
        HANDLED + traceback_of("my.Odd: bad").partition("\n")[2],
        HANDLED + traceback_of("my.Odd: bad").replace("    x = f(y)\n", "loss: 0.3\n    x = f(y)\n"),
        HANDLED + traceback_of("my.Odd: bad") + traceback_of("subprocess.CalledProcessError: Command 'x'"),
        HANDLED + traceback_of("my.Odd: bad").replace("\n", "\nstderr: "),
        HANDLED + "  ╭─ Traceback (most recent call last) ─╮\n  │ a.py:3 │\n  ╰─────╯\n  my.Odd: bad\nINFO: step 3\n",
        HANDLED
        + traceback_of("my.Odd: bad").replace("    x = f(y)\n", '  File "/home/me/net.py", line 9, in g\n' * 300),
        "CUDA out of memory. Reducing the batch size to 4\n" + traceback_of("my.Odd: bad"),
    ],
)
def test_an_exception_is_found_below_its_frames_in_any_form(log: str) -> None:
    assert the_cause(evidence(log)).message == "my.Odd: bad"


def test_a_syntax_error_without_a_title_is_found() -> None:
    log = HANDLED + '  File "train.py", line 3\n    def f(:\n          ^\nSyntaxError: invalid syntax\n'
    assert the_cause(evidence(log)).message == "SyntaxError: invalid syntax"


def test_frames_of_a_printed_stack_are_not_an_exception() -> None:
    log = 'Stack (most recent call last):\n  File "/home/me/a.py", line 3, in f\n    x = f()\ndone\n'
    assert the_cause(evidence(log)).code == "R611"


def test_an_interrupt_is_named_only_if_there_is_no_other_exception() -> None:
    both = traceback_of("ValueError: odd", "[rank1]: ") + traceback_of("KeyboardInterrupt", "[rank0]: ")
    assert the_cause(evidence(both)).message == "ValueError: odd"
    assert the_cause(evidence(traceback_of("KeyboardInterrupt"))).message == "KeyboardInterrupt"


@pytest.mark.parametrize(
    "last", ["StopIteration", "torch._dynamo.exc.Unsupported: call of a name", "ExceptionGroup: two (2 sub-exceptions)"]
)
def test_an_exception_of_any_name_is_known_by_its_traceback(last: str) -> None:
    text = f'Traceback (most recent call last):\n  File "/home/me/net.py", line 12, in forward\n    f(x)\n{last}\nbye\n'
    cause = the_cause(evidence(text))
    assert (cause.code, cause.message) == ("R609", last)
    assert "/home/me/net.py:12, in forward" in cause.notes[0]


def test_memory_of_a_gpu_is_not_that_of_the_host() -> None:
    assert the_cause(evidence("RuntimeError: CUDA error: Out Of Memory")).code == "R606"
    assert the_cause(evidence("oom_kill_disable is set\n")).code == "R611"


FOUND = """\
[rank1]: error[R514]: rank 0 is gone
error[R506]: train7 cannot be loaded
  note: ValueError: the seventh image
        is odd
  help: repair it
error[R561]: the launcher ended with status 0
"""


def test_finding_of_the_run_precedes_its_consequences() -> None:
    cause = the_cause(evidence(FOUND + TRACEBACK, "srun: error: Node failure on n2", end=End.NODE))
    assert (cause.code, cause.message, cause.span and cause.span.line) == ("R506", "train7 cannot be loaded", 2)
    assert cause.notes[:2] == ("ValueError: the seventh image", "is odd")
    assert "NODE" in cause.notes[-1]
    assert cause.helps == ("repair it", "it is about spec.yaml:3:3: `data.data_dir`")


def test_consequence_is_reported_if_no_cause_is_found() -> None:
    assert the_cause(evidence("error[R561]: the launcher ended with status 0\nerror[R514]: gone")).code == "R561"
    assert the_cause(evidence("error[R514]: gone\n" + TRACEBACK)).code == "R609"


def test_innermost_line_of_own_code_is_named() -> None:
    assert "/home/me/net.py:12, in forward" in the_cause(evidence(TRACEBACK)).notes[0]


def test_sufficient_walltime_is_suggested_after_a_timeout() -> None:
    cause = the_cause(evidence(end=End.TIME, epochs=({"seconds": 50.0}, {"seconds": 70.0})))
    # 10 epochs of 60 s, a tenth more and two minutes: 780 s.
    assert "`0:13:00` in spec.yaml:1:3: `resources.walltime`" in cause.helps[0]
    assert "all of them take 10 min" in cause.notes[1]


@pytest.mark.parametrize("seconds", [1e308, float("nan"), -5, "5", None, True])
def test_no_walltime_is_suggested_from_impossible_seconds(seconds: Any) -> None:
    cause = the_cause(evidence(end=End.TIME, epochs=({"seconds": seconds}, {"seconds": seconds})))
    assert cause.code == "R601"
    assert "no epoch was finished" in " ".join(cause.notes) or seconds is True


def test_a_job_in_an_unknown_state_is_explained_by_its_logs() -> None:
    assert the_cause(evidence(TRACEBACK, end=End.UNKNOWN)).code == "R609"
    cause = the_cause(evidence("step 1\n", end=End.UNKNOWN))
    assert cause.code == "R611"
    assert "the scheduler reports: job 7 is UNKNOWN" in cause.notes[-1]


def test_a_deadline_is_not_a_walltime() -> None:
    given = evidence(end=End.TIME, record={"limit_s": 600})
    deadline = dataclasses.replace(given.records[0], state="DEADLINE")
    cause = the_cause(dataclasses.replace(given, records=(deadline,)))
    assert (cause.code, cause.message, cause.helps) == ("R601", "the job could not end before its deadline", ())


def test_half_more_memory_is_suggested_after_a_memory_kill() -> None:
    cause = the_cause(evidence(end=End.MEMORY, record={"asked_memory": 2 << 30, "memory": 2 << 30}))
    assert "`3GB` in spec.yaml:2:3" in cause.helps[0]
    assert "2.0 GiB" in cause.notes[0]


@pytest.mark.parametrize(
    "text", ["\x00", "error[R506]:", "error[R506]: ", "  note: x", "Traceback\nError", "\n" * 1000]
)
def test_any_log_text_gives_a_cause(text: str) -> None:
    assert the_cause(evidence(text)).code.startswith("R")


def test_no_memory_prediction_is_suggested_for_an_own_program() -> None:
    log = Source("log0", "RuntimeError: CUDA out of memory. Tried to allocate 2 MiB")
    for lock, helps in ((LOCK, 2), (OWN, 1)):
        cause = the_cause(Evidence(lock, (log,), (), None, "outputs/demo", settings=settings()))
        assert cause is not None
        assert cause.code == "R606"
        assert len(cause.helps) == helps


def test_a_finding_that_a_program_raised_is_that_finding() -> None:
    refusal = (
        "ratc_runtime.errors.RuntimeFinding: error[R503]: the program runs with other values than the lock\n"
        "  note: gradient_accumulation_steps: 1, the lock says 4\n"
        "  help: use the plan's values\n"
    )
    given = evidence("step 1\nTraceback (most recent call last):\n" + refusal, end=End.FAILED)
    cause = the_cause(dataclasses.replace(given, lock=OWN))
    assert (cause.code, cause.message) == ("R503", "the program runs with other values than the lock")
    assert cause.notes[0] == "gradient_accumulation_steps: 1, the lock says 4"
    assert cause.helps == ("use the plan's values", "it is about `entrypoint.args`")


def test_a_finding_names_keys_of_the_program_or_of_the_loop() -> None:
    given = evidence("error[R509]: train cannot be imported\n")
    assert the_cause(given).helps == ("it is about `model.name`",)
    assert the_cause(dataclasses.replace(given, lock=OWN)).helps == ("it is about `entrypoint.script`",)
    batch = evidence("[rank0]: error[R511]: out of memory\n[rank0]:   note: in step 3\n[rank0]:         of 9\n")
    cause = the_cause(dataclasses.replace(batch, lock=OWN))
    assert cause.helps == ("it is about spec.yaml:4:3: `training.batch_size`",)
    assert cause.notes == ("in step 3", "of 9")


HANG = """\
error[R525]: no progress for 20 s in epoch 1, step 2: rank 1 on n2 hangs in `loader`
  note: rank 1 on n2, process 77, has been in `loader` for 20 s:
          File "/opt/ratc_runtime/training/loop.py", line 273, in feed
            for expected, batch in zip(sizes, batches):
          File "/home/me/mine.py", line 14, in __getitem__
            time.sleep(900)
          File "/opt/venv/lib/python3.11/site-packages/numpy/core.py", line 9, in solve
            wait()
        rank 0 waits in `backward` on n1
  help: look at the stack
        run the same command again
"""


def test_of_a_stack_in_a_finding_the_innermost_frame_is_shown() -> None:
    cause = the_cause(evidence(HANG))
    assert cause.notes == (
        "rank 1 on n2, process 77, has been in `loader` for 20 s:",
        'File "/home/me/mine.py", line 14, in __getitem__ time.sleep(900)',
        "rank 0 waits in `backward` on n1",
    )
    assert cause.helps == ("look at the stack", "run the same command again")


def test_a_finding_behind_a_progress_bar_is_one() -> None:
    log = " 25%|##5       | 5/20 [00:00<00:02]error[R567]: the program ended with status 3\n"
    assert the_cause(evidence(log, end=End.FAILED)).code == "R567"
    for bar in ("8it [00:03,  2.5it/s]", " 40%|## | 8.00k/20.0k [00:03<00:05, lr=[1e-3, 2e-3]]"):
        assert the_cause(evidence(f"{bar}error[R567]: the program ended\n", end=End.FAILED)).code == "R567"
    assert the_cause(evidence(f"see error[R567]: {'5/2 ' * 9}\n", end=End.FAILED)).code != "R567"


WORKER = """\
Traceback (most recent call last):
  File "/opt/venv/lib/python3.11/site-packages/torch/utils/data/dataloader.py", line 1284, in _try_get_data
    data = self._data_queue.get(timeout=timeout)
  File "/opt/venv/lib/python3.11/site-packages/torch/utils/data/_utils/signal_handling.py", line 73, in handler
    _error_if_any_worker_fails()
RuntimeError: DataLoader worker (pid 13) is killed by signal: Killed.

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/home/me/train.py", line 12, in <module>
    for batch in loader:
RuntimeError: DataLoader worker (pid(s) 13) exited unexpectedly
"""


def test_a_killed_loader_process_is_the_cause_of_the_exception_after_it() -> None:
    assert the_cause(evidence(WORKER, end=End.FAILED)).code == "R615"
    assert the_cause(evidence(f"{WORKER}Traceback (most recent call last):\n{TRACEBACK}")).code == "R609"
    several = WORKER.replace("(pid(s) 13)", "(pid(s) 99, 13)")
    assert the_cause(evidence(several, end=End.FAILED)).code == "R615"
    later = WORKER.replace("(pid(s) 13)", "(pid(s) 99)")
    assert the_cause(evidence(later, end=End.FAILED)).code == "R609", "another one ended later"


def test_what_pytorch_warns_of_a_gpu_is_the_cause_of_what_is_raised_after_it() -> None:
    warned = "c10: UserWarning: CUDA initialization: No CUDA GPUs are available (Triggered internally at x.cpp:9.)\n"
    gpu = Values({**OWN, "hardware.device": Value("cuda", "spec")})
    cause = the_cause(dataclasses.replace(evidence(warned + TRACEBACK, end=End.FAILED), lock=gpu))
    assert (cause.code, cause.message) == ("R616", "PyTorch cannot use the node's GPU: No CUDA GPUs are available")
    trained = evidence(f"{warned}epoch 1 of 3\n{TRACEBACK}", end=End.FAILED)
    assert the_cause(dataclasses.replace(trained, lock=gpu)).code == "R609", "it went on without one"


HELD = """\
epoch 1/3  step 1/3
Timeout (0:02:30)!
Thread 0x00007fe0acdff6c0 (most recent call first):
  File "/opt/python/lib/python3.11/threading.py", line 331 in wait

Thread 0x00007fe0d39beb80 (most recent call first):
  File "/opt/venv/lib/python3.11/site-packages/numpy/core.py", line 9 in solve
  File "/home/me/mine.py", line 14 in __getitem__
  File "/opt/ratc_runtime/data/samples.py", line 113 in _read
"""


def test_code_that_holds_the_interpreter_is_named_by_the_stack_of_its_timer() -> None:
    cause = the_cause(evidence(HELD, end=End.FAILED))
    assert (cause.code, cause.span and cause.span.line) == ("R525", 2)
    assert "after 0:02:30" in cause.message
    assert cause.notes[0] == "/home/me/mine.py:14, in __getitem__, keeps all other code from running"
    assert the_cause(evidence("Timeout (0:02:30)!\n", end=End.FAILED)).code == "R525"
    assert the_cause(evidence(HELD + TRACEBACK, end=End.FAILED)).code == "R609", "the program went on"


def test_a_killed_helper_does_not_explain_an_exception_of_later() -> None:
    log = "launch.sh: line 9: 311 Killed      python monitor.py\nepoch 2\nBrokenPipeError: [Errno 32] Broken pipe\n"
    assert the_cause(evidence(log, end=End.FAILED)).code == "R609"
    log = "node.sh: line 67: 25 Killed    python -m ratc_runtime.program\nTraceback (most recent call last):\n"
    log += '  File "/home/me/train.py", line 4, in <module>\nKeyboardInterrupt\n'
    assert the_cause(evidence(log, end=End.FAILED)).code == "R615"


def test_a_killed_launcher_is_the_cause_of_the_stop_that_its_ranks_ask_for() -> None:
    killed = "node.sh: line 67: 23105 Killed                  python -m accelerate.commands.launch"
    for said in ("the launcher is gone\n", "a signal to another rank\n"):
        cause = the_cause(evidence("saved, not finished", killed, end=End.FAILED, stopped=said))
        assert (cause.code, cause.notes[0]) == ("R615", "it saved before it ended")
        assert the_cause(evidence("saved, not finished", end=End.FAILED, stopped=said)).code == "R604"


def test_a_run_without_a_gpu_is_not_explained_by_its_driver() -> None:
    lock = Values({**LOCK, "hardware.device": Value("cpu", "spec")})
    given = evidence("RuntimeError: Found no NVIDIA driver on your system.\n")
    assert the_cause(given).code == "R616"
    assert the_cause(dataclasses.replace(given, lock=lock)).code == "R609"


def test_the_silence_of_another_program_is_no_cause() -> None:
    given = evidence("step 1\n", end=End.FAILED)
    assert the_cause(given).code == "R615"
    assert the_cause(dataclasses.replace(given, lock=OWN)).code == "R611"
