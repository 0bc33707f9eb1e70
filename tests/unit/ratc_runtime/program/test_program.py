"""A user's program on a node: the values that it gets, and the results of its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ratc_runtime.program import __main__ as program

from ratc.cli import main as ratc
from tests.effort import HANGS_S

SPEC = """experiment_name: demo
entrypoint: {entrypoint}
launcher: none
training: {{target_batch_size: 16, batch_size: 4}}
resources: {{num_gpus: 0}}
"""
#: Prints what it is told, as JSON.
TELLS = """import json, os, sys
import ratc_runtime
plan = ratc_runtime.plan()
told = {name: value for name, value in os.environ.items() if name.startswith("RATC_")}
print(json.dumps([sys.argv[1:], dict(plan), told, os.getcwd()]))
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Compile an entrypoint and run its script; returns how it ended."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RATC_PYTHON", sys.executable)

    def run(entrypoint: str, *options: str, **files: str) -> subprocess.CompletedProcess[str]:
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        (tmp_path / "spec.yaml").write_text(SPEC.format(entrypoint=entrypoint))
        assert ratc(["compile", "spec.yaml", "-o", "out", *options]) == 0
        return subprocess.run(["out/run.sh"], capture_output=True, text=True, timeout=HANGS_S, check=False)

    return run


def results(folder: Path = Path("outputs/demo")) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def test_a_script_gets_the_plan_as_arguments_variables_and_python_object(start: Any, tmp_path: Path) -> None:
    entrypoint = r'{script: train.py, args: [--batch, "${micro_batch_size}", "a b\n\"c\" *", "$${seed}", 7, "${lock}"]}'
    done = start(entrypoint, train=TELLS)
    assert done.returncode == 0, done.stderr
    args, plan, told, folder = json.loads(done.stdout.splitlines()[-1])
    assert args == ["--batch", "4", 'a b\n"c" *', "${seed}", "7", str(tmp_path / "out/lock.yaml")]
    assert plan["gradient_accumulation_steps"] == int(told["RATC_GRADIENT_ACCUMULATION_STEPS"]) == 4
    assert told["RATC_BF16"] == "false"
    assert told["RATC_OUTPUT_DIR"] == str(tmp_path / "outputs/demo")
    assert folder == str(tmp_path)
    assert "wrote no results.json" in done.stderr
    assert results()["status"] == "finished"


def test_a_script_imports_modules_beside_it(start: Any) -> None:
    done = start("{script: train.py}", train="import other\nprint(other.X)\n", other="X = 'found'\n")
    assert "found" in done.stdout, done.stderr


def test_a_module_is_run_as_main(start: Any) -> None:
    done = start("{module: train, args: [1]}", train="import sys\nprint(__name__, sys.argv[1:])\n")
    assert "__main__ ['1']" in done.stdout, done.stderr


def test_a_command_runs_without_python(start: Any) -> None:
    done = start("""{command: [bash, -c, 'echo "$0 $RATC_SEED"', x]}""")
    assert done.stdout == "x 42\n"


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate", "none"])
def test_one_process_runs_the_same_under_every_launcher(start: Any, launcher: str) -> None:
    if launcher == "accelerate":
        pytest.importorskip("accelerate")
    done = start(
        "{script: train.py, args: [a]}", "--set", f"launcher={launcher}", train="import sys\nprint(sys.argv[1:])\n"
    )
    assert "['a']" in done.stdout, done.stderr


def test_results_that_the_program_reports_are_kept(start: Any) -> None:
    program_text = "import ratc_runtime\nratc_runtime.plan().finished(accuracy=0.5, micro_batch_size=4)\n"
    assert start("{script: train.py}", train=program_text).returncode == 0
    assert results()["accuracy"] == 0.5
    again = start("{script: train.py}", train=program_text)
    assert "already finished" in again.stdout
    other = start("{script: train.py}", "--set", "seed=1", train="print('ran')\n")
    assert "ran" in other.stdout
    assert "accuracy" not in results(), "the results of another lock are set aside"


def test_results_of_a_start_that_failed_are_not_those_of_the_next(start: Any) -> None:
    reports = "import ratc_runtime\nratc_runtime.plan().finished(accuracy=0.1)\nimport sys\nsys.exit(3)\n"
    assert start("{script: train.py}", train=reports).returncode == 1
    assert results()["accuracy"] == 0.1
    silent = start("{script: train.py}", train="print('ran')\n")
    assert silent.returncode == 0
    assert "the program wrote no results.json" in silent.stderr
    assert "accuracy" not in results()
    # Of another lock: two failed starts do not push the finished results out.
    assert start("{script: train.py}", "--set", "seed=1", train=reports).returncode == 1
    assert start("{script: train.py}", "--set", "seed=1", train=reports).returncode == 1
    assert json.loads(Path("outputs/demo/results.previous.json").read_text())["status"] == "finished"
    again = start("{script: train.py}", "--set", "seed=1", train=reports.replace("sys.exit(3)", "pass"))
    assert (again.returncode, results()["accuracy"]) == (0, 0.1), again.stderr


def test_a_program_does_not_add_to_what_a_failed_start_of_another_lock_wrote(start: Any) -> None:
    adds = """import json, os, sys
path = os.environ["RATC_OUTPUT_DIR"] + "/results.json"
found = json.load(open(path)) if os.path.exists(path) else {}
found[os.environ["RATC_SEED"]] = len(found)
json.dump(found, open(path, "w"))
sys.exit(1)
"""
    assert start("{script: train.py}", "--set", "seed=8", train=adds).returncode == 1
    assert start("{script: train.py}", "--set", "seed=9", train=adds).returncode == 1
    assert results() == {"9": 0}
    assert json.loads(Path("outputs/demo/results.unfinished.json").read_text()) == {"8": 0}
    # The same lock goes on from what it wrote.
    assert start("{script: train.py}", "--set", "seed=9", train=adds).returncode == 1
    assert results() == {"9": 1}


def test_a_script_of_the_shell_may_have_the_name_of_a_module(start: Any) -> None:
    Path("train.sh").write_text("echo of the shell\n")
    done = start("{command: [bash, train.sh]}", train="print('of Python')\n")
    assert (done.returncode, done.stdout) == (0, "of the shell\n"), done.stderr


def test_r567_for_a_program_that_fails(start: Any) -> None:
    done = start("{command: [bash, -c, 'exit 3']}")
    assert done.returncode == 1
    assert "error[R567]: the program ended with status 3" in done.stderr
    assert not Path("outputs/demo/results.json").exists()


def test_r503_for_a_program_that_ran_with_another_batch(start: Any) -> None:
    done = start("{script: train.py}", train="import ratc_runtime\nratc_runtime.plan().finished(micro_batch_size=8)\n")
    assert done.returncode == 1
    assert "error[R503]" in done.stderr
    assert "micro_batch_size: 8, the lock says 4" in done.stderr
    assert results().get("status") != "finished"
    done = start("{script: train.py}", train="import ratc_runtime\nratc_runtime.plan().verify(world_size=2)\n")
    assert "world_size: 2, the lock says 1" in done.stderr
    done = start("{script: train.py}", train="import ratc_runtime\nratc_runtime.plan().verify(world_size='1')\n")
    assert "world_size: '1', the lock says 1" in done.stderr


@pytest.mark.parametrize("written", ["[1, 2]", '{"dice": 0.5'])
def test_a_file_of_results_that_is_no_mapping_is_kept_under_another_name(start: Any, written: str) -> None:
    program = (
        f"import os, pathlib\npathlib.Path(os.environ['RATC_OUTPUT_DIR'], 'results.json').write_text({written!r})\n"
    )
    done = start("{script: train.py}", train=program)
    assert done.returncode == 0, done.stderr
    assert "holds no mapping: it is now results.program" in done.stderr
    assert Path("outputs/demo/results.program").read_text() == written
    assert results()["status"] == "finished"


@pytest.mark.parametrize(
    ("entrypoint", "missing"),
    [("{script: gone.py}", "the script"), ("{module: gone.train}", "the module"), ("{command: [gone]}", "the command")],
)
def test_r509_for_a_missing_entrypoint_before_anything_starts(start: Any, entrypoint: str, missing: str) -> None:
    done = start(entrypoint)
    assert done.returncode == 1
    assert "error[R509]" in done.stderr
    assert missing in done.stderr


@pytest.mark.parametrize(
    ("entrypoint", "path"), [("{script: sub/train.py}", "sub/train.py"), ("{module: sub.train}", "sub/train.py")]
)
@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("import json\nimport gone.part\n", "train.py:2 needs gone.part"),
        ("try:\n    import gone\nexcept ImportError:\n    print('ran')\n", None),
        ("import sys\nsys.path.append('lib')\nimport inside\n", None),
    ],
)
def test_a_missing_import_is_refused_before_anything_starts(
    start: Any, tmp_path: Path, entrypoint: str, path: str, text: str, missing: str | None
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/inside.py").write_text("print('ran')\n")
    (tmp_path / path).write_text(text)
    done = start(entrypoint)
    if missing is None:
        assert "ran" in done.stdout, done.stderr
        return
    assert done.returncode == 1
    assert "error[R509]: modules that the run needs are not found" in done.stderr
    assert missing in done.stderr


def test_scripts_import_from_their_folder_and_modules_from_the_spec_s(start: Any, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/beside.py").write_text("X = 1\n")
    (tmp_path / "sub/train.py").write_text("import beside\nprint('ran')\n")
    assert "ran" in start("{script: sub/train.py}").stdout
    done = start("{module: sub.train}")
    assert "needs beside" in done.stderr
    (tmp_path / "sub/train.py").write_text("from . import beside\nfrom sub.beside import X\nprint('ran')\n")
    assert "ran" in start("{module: sub.train}").stdout


def test_a_program_that_changed_since_compiling_is_refused(start: Any, tmp_path: Path) -> None:
    assert start("{script: train.py}", train="import other\n", other="X = 1\n").returncode == 0
    (tmp_path / "other.py").write_text("X = 2\n")
    done = subprocess.run(["out/run.sh"], capture_output=True, text=True, timeout=HANGS_S, check=False)
    assert done.returncode == 1
    assert "error[R582]" in done.stderr
    assert "other.py changed" in done.stderr


STOPS = """import time
import ratc_runtime
plan = ratc_runtime.plan()
print("started", flush=True)
while not plan.should_stop():
    time.sleep(0.05)
plan.stopped()
"""


def test_a_stopped_program_saves_and_is_not_finished(start: Any, tmp_path: Path) -> None:
    start("{command: ['true']}")
    (tmp_path / "outputs/demo/results.json").unlink()
    (tmp_path / "train.py").write_text(STOPS)
    launched = SPEC.replace("launcher: none", "launcher: torchrun")
    (tmp_path / "spec.yaml").write_text(launched.format(entrypoint="{script: train.py}"))
    assert ratc(["compile", "spec.yaml", "-o", "out"]) == 0
    with subprocess.Popen(["out/run.sh"], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "started\n"
        run.send_signal(signal.SIGTERM)
        assert run.wait(HANGS_S) == 0
    assert not (tmp_path / "outputs/demo/results.json").exists()
    assert not (tmp_path / "outputs/demo/STOP").exists()
    assert (tmp_path / "outputs/demo/STOPPED").exists()


def test_sigterm_to_the_whole_process_group_stops_a_program_with_a_save(start: Any, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(STOPS)
    (tmp_path / "spec.yaml").write_text(SPEC.format(entrypoint="{script: train.py}"))
    assert ratc(["compile", "spec.yaml", "-o", "out"]) == 0
    with subprocess.Popen(["out/run.sh"], stdout=subprocess.PIPE, text=True, start_new_session=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "started\n"
        os.killpg(run.pid, signal.SIGTERM)
        assert run.wait(HANGS_S) == 0
    assert (tmp_path / "outputs/demo/STOPPED").exists()


def test_sigterm_to_ratc_train_stops_the_program_with_a_save(start: Any, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(STOPS)
    (tmp_path / "spec.yaml").write_text(SPEC.format(entrypoint="{script: train.py}"))
    words = [sys.executable, "-m", "ratc", "train", "spec.yaml", "--trust"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "started\n"
        run.terminate()
        assert run.wait(HANGS_S) == 0
    assert (tmp_path / "outputs/demo/STOPPED").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_interrupt_kills_a_program_that_ignores_the_first(
    start: Any, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "train.py").write_text("import time\nprint('started', flush=True)\ntime.sleep(1000)\n")
    (tmp_path / "spec.yaml").write_text(SPEC.format(entrypoint="{script: train.py}"))
    assert ratc(["compile", "spec.yaml", "-o", "out"]) == 0
    words = [sys.executable, "-m", "ratc_runtime.program", "--lock", "out/lock.yaml", "--", "{}"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.stdout.readline() == "started\n"
        run.send_signal(number)
        assert "asked to save and stop" in run.stdout.readline()
        run.send_signal(number)
        assert run.wait(HANGS_S) == 1
        assert "was ended by signal 15" in run.stderr.read()


#: Starts a program that is ended two seconds after its parent, if SIGINT does not end it.
SOON_LEFT = "import sys; from ratc_runtime.program import __main__ as m; m.LEFT = 2; sys.exit(m.main())"


@pytest.mark.parametrize(
    ("before", "entrypoint"),
    [
        ("", "{script: train.py}"),
        ("trap '' TERM USR2; ", "{script: train.py}"),
        ("trap '' TERM USR2; ", "{command: [bash, -c, 'python train.py; echo went on']}"),
        ("trap '' INT TERM USR2; ", "{command: [bash, -c, 'python train.py; echo went on']}"),
    ],
    ids=["in a terminal", "in a job of Slurm", "below a shell", "below a shell in a job of LSF"],
)
def test_a_program_ends_when_its_parent_is_killed(start: Any, tmp_path: Path, before: str, entrypoint: str) -> None:
    """Else it would write into a folder that another run may take."""
    (tmp_path / "train.py").write_text("import time\nprint('started', flush=True)\ntime.sleep(1000)\n")
    lock_of(tmp_path, entrypoint.replace("python ", f"{sys.executable} "))
    words = [sys.executable, "-c", SOON_LEFT, "--lock", "out/lock.yaml", "--", "{}"]
    words = ["sh", "-c", f'{before}exec "$@"', "sh", *words]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "started\n"
        run.kill()
        assert run.stdout.read() == "", "only the program's end closes the pipe"


def test_the_first_node_waits_for_the_others(start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start("{command: ['true']}")
    lock = tmp_path / "out/lock.yaml"
    text = lock.read_text().replace("  nodes: 1", "  nodes: 2").replace("world_size: 1 ", "world_size: 2 ")
    lock.write_text(text.replace("accumulation_steps: 4", "accumulation_steps: 2"))
    monkeypatch.setattr(program, "PATIENCE", 0.2)
    given = ["--lock", str(lock), "--start", "7", "--output-dir", "o"]
    assert program.main([*given, "--node", "0", "--", "{}"]) == 1
    assert not Path("o/results.json").exists()
    assert program.main([*given, "--node", "1", "--", "{}"]) == 0
    assert program.main([*given, "--node", "0", "--", "{}"]) == 0
    assert results(Path("o"))["status"] == "finished"


def test_without_a_launcher_rank_and_rendezvous_are_set(start: Any, tmp_path: Path) -> None:
    start("{command: [env]}")
    lock = program.read_any(tmp_path / "out/lock.yaml")
    assert isinstance(lock, program.ProgramLock)
    given = program.parse(["--lock", "l", "--node", "3", "--local", "1", "--head", "h", "--port", "9", "--", "{}"])
    told = program.variables(lock, given, program.at_start(lock, given))
    assert {name: told[name] for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")} == {
        "RANK": "3",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "h",
        "MASTER_PORT": "9",
    }
    assert "PYTHONSAFEPATH" not in told
    assert os.path.isabs(told["RATC_LOCK"])


def test_a_process_of_srun_gets_its_rank(start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = lock_of(tmp_path, "{command: [env]}")

    def told(*words: str, launcher: str = "{}") -> dict[str, str]:
        given = program.parse(["--lock", "l", *words, "--", *launcher.split()])
        variables = program.variables(lock, given, program.at_start(lock, given))
        return {name: text for name, text in variables.items() if name in ("SLURM_PROCID", "SLURM_LOCALID")}

    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert told("--node", "3", "--local", "1") == {}
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert told("--node", "3", "--local", "1") == {"SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
    assert told("--node", "2") == {"SLURM_PROCID": "2", "SLURM_LOCALID": "0"}
    assert told("--node", "2", launcher="torchrun {}") == {}


def test_an_impossible_number_of_processes_is_refused(start: Any, tmp_path: Path) -> None:
    start("{command: ['true']}")
    lock = tmp_path / "out/lock.yaml"
    lock.write_text(
        lock.read_text().replace("  nodes: 1", f"  nodes: {10**12}").replace("size: 1 ", f"size: {10**12} ")
    )
    assert program.main(["--lock", str(lock), "--output-dir", "o", "--", "{}"]) == 1
    with pytest.raises(program.RuntimeFinding, match="R505"):
        program.read_any(lock)


def lock_of(folder: Path, entrypoint: str) -> program.ProgramLock:
    (folder / "spec.yaml").write_text(SPEC.format(entrypoint=entrypoint))
    assert ratc(["compile", "spec.yaml", "-o", "out"]) == 0
    lock = program.read_any(folder / "out/lock.yaml")
    assert isinstance(lock, program.ProgramLock)
    return lock


def test_a_script_that_looks_like_an_option_is_run(start: Any, tmp_path: Path) -> None:
    (tmp_path / "-c").write_text("import sys\nprint('ran', sys.argv[1:])\n")
    done = start('{script: "-c", args: [a]}')
    assert "ran ['a']" in done.stdout, done.stderr


#: Writes its arguments into a file by its rank.
NOTES = "import json, os, sys\nopen(os.environ['RANK'], 'w').write(json.dumps(sys.argv[1:]))\n"
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    "accelerate": ["accelerate.commands.launch", "--quiet", "--config_file", "two.yaml"],
}


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train.py", "-c"])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_does_not_consume_program_arguments(start: Any, tmp_path: Path, launcher: str, script: str) -> None:
    module, *options = LAUNCHERS[launcher]
    (tmp_path / "two.yaml").write_text("{distributed_type: MULTI_GPU, num_processes: 2, main_process_port: 0}\n")
    pytest.importorskip(module.partition(".")[0])
    (tmp_path / script).write_text(NOTES)
    args = ["--", "--", "-h", "--nproc_per_node", "7", "", "a b", "{}", "--"]
    lock_of(tmp_path, json.dumps({"script": script, "args": args}))
    command = [sys.executable, "-m", "ratc_runtime.program", "--lock", "out/lock.yaml", "--", sys.executable, "-m"]
    done = subprocess.run(
        [*command, module, *options, "{}"], capture_output=True, text=True, timeout=HANGS_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads((tmp_path / rank).read_text()) for rank in "01"] == [args, args]


@pytest.mark.parametrize("launcher", [[], ["a"], ["{}", "{}"], ["{} "]])
def test_a_launcher_command_needs_exactly_one_placeholder(launcher: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        program.parse(["--lock", "l", "--", *launcher])
    assert ended.value.code == 2
    assert "{}" in capsys.readouterr().err or not launcher


def test_the_program_replaces_the_placeholder_of_the_launcher_command(start: Any, tmp_path: Path) -> None:
    lock = lock_of(tmp_path, '{script: train.py, args: ["{}", "$${}"]}')
    assert program.words(lock, ["l", "{}", "x"], {}) == ["l", "train.py", "{}", "${}", "x"]
    assert program.words(lock, ["{}"], {}) == [sys.executable, "train.py", "{}", "${}"]


KEEPS = """import ratc_runtime
plan = ratc_runtime.plan()
kept = sorted(path.name for path in plan.checkpoint_dir.glob("*"))
print(plan.resume, kept)
plan.checkpoint_dir.mkdir(parents=True, exist_ok=True)
(plan.checkpoint_dir / str(len(kept))).touch()
plan.finished()
"""


def test_a_changed_program_or_fresh_starts_without_old_checkpoints(start: Any, tmp_path: Path) -> None:
    again = ["bash", "out/run.sh"]

    def run(*options: str) -> str:
        (tmp_path / "outputs/demo/results.json").unlink(missing_ok=True)
        done = subprocess.run([*again, *options], capture_output=True, text=True, timeout=HANGS_S, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "True []" in start("{script: train.py}", train=KEEPS).stdout
    assert "True ['0']" in run()
    assert "False []" in run("--fresh")
    assert "True ['0']" in run()
    assert len(list(tmp_path.glob("outputs/demo/checkpoints/*.previous/1"))) == 1
    # A comment changes no run; another argument does.
    assert "True ['0', '1']" in start("{script: train.py}", train=f"# more\n{KEEPS}").stdout
    assert "True []" in start("{script: train.py, args: [a]}").stdout
    assert "False []" in start("{script: train.py}", "--set", "checkpoint.resume=never").stdout
    assert "False []" in run()


def test_folders_known_at_the_start_are_substituted_in_the_arguments(start: Any, tmp_path: Path) -> None:
    names = ("data_dir", "output_dir", "checkpoint_dir", "resume", "lock")
    args = json.dumps([f"${{{name}}}" for name in names])
    done = start(f"{{script: train.py, args: {args}}}", train=TELLS)
    words, _, told, _ = json.loads(done.stdout.splitlines()[-1])
    assert words == [told[f"RATC_{name.upper()}"] for name in names]
    assert words[0] == str(tmp_path)
    assert words[2].startswith(f"{tmp_path}/outputs/demo/checkpoints/")


LEAVES = """\
import sys
import ratc_runtime

plan = ratc_runtime.plan()
plan.leave()
print("one process goes on", flush=True)
import torch.distributed as dist

plan.leave()
print("so it does with torch", flush=True)
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
plan.finished(score=1.0)
plan.leave()
print("not reached")
"""


def test_leave_ends_a_program_that_has_a_process_group(start: Any, tmp_path: Path) -> None:
    done = start(f"{{script: leaves.py, args: [{tmp_path / 'meeting'}]}}", leaves=LEAVES)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("one process goes on\nso it does with torch\n")
    assert "not reached" not in done.stdout
    assert results()["score"] == 1.0
