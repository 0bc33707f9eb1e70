"""`ratc import`: golden folders of files from other tools, and laws about what becomes of each line.

A folder of `tests/imports` holds the files, `args.txt`, and what is expected: `expected.yaml`, the spec, and
`expected.txt`, what is said. `python -m tests.unit.ratc.importers.test_importers` writes both again: read them.
"""

import contextlib
import io
import os
import re
import shlex
from pathlib import Path

import pytest
import yaml

from ratc.cli import main
from ratc.importers import accelerate, batch, deepspeed, keys, merge, specification, unified
from ratc.importers.model import Carried, Left
from ratc.yaml.parse import parse
from tests.places import CASES, IMPORTS


def told(folder: Path) -> tuple[int, str, str]:
    out, err, here = io.StringIO(), io.StringIO(), os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(["import", *shlex.split(Path("args.txt").read_text())])
    finally:
        os.chdir(here)
    return status, out.getvalue(), err.getvalue()


def folders() -> list[Path]:
    return sorted(path for path in IMPORTS.iterdir() if path.is_dir())


@pytest.mark.parametrize("folder", folders(), ids=lambda path: path.name)
def test_import(folder, tmp_path):
    status, out, err = told(folder)
    assert err == (folder / "expected.txt").read_text()
    assert status == (0 if (folder / "expected.yaml").exists() else 1)
    if status:
        assert out == ""
        return
    assert out == (folder / "expected.yaml").read_text()
    (tmp_path / "spec.yaml").write_text(out)
    with contextlib.redirect_stderr(io.StringIO()) as said:
        main(["validate", str(tmp_path / "spec.yaml")])
    assert not re.search(r"R0\d\d|R1\d\d", said.getvalue()), "the schema takes what was written"


def test_there_are_enough_of_them():
    assert len(folders()) >= 12


READERS = {"acc.yaml": accelerate.read, "ds.json": deepspeed.read, "unified.yaml": unified.read}
FILES = [
    path for folder in folders() for path in folder.iterdir() if path.name in READERS and "error" not in folder.name
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_leaf_of_a_file_is_carried_or_left_and_told(path):
    document, _ = parse(path.name, path.read_bytes().replace(b"\t", b" "))
    items = READERS[path.name](document)
    assert sorted(item.source for item in items) == sorted(".".join(names) for names, _ in keys.leaves(document.root))
    text, _ = specification.write(merge.merge(items), [path.name])
    for item in items:
        assert f"{path.name}:{item.span.line}" in text, item


@pytest.mark.parametrize("path", sorted(IMPORTS.glob("*/run.*")), ids=lambda path: path.parent.name)
def test_every_line_of_a_script_is_carried_or_left(path):
    kind = "lsf" if path.suffix == ".lsf" else "slurm"
    items = batch.read(kind, path.name, path.read_bytes().decode())
    lines = path.read_bytes().decode().replace("\r", "").split("\n")
    spoken = {
        number
        for number, line in enumerate(lines, 1)
        if (line.strip() and not line.startswith("#")) or line.startswith(("#SBATCH", "#BSUB"))
        if number < 2 or not lines[number - 2].endswith("\\")
    }
    assert {item.span.line for item in items} == spoken
    assert all(isinstance(item, (Carried, Left)) for item in items)


@pytest.mark.parametrize(
    ("text", "walltime"),
    [
        ("30", "0-00:30:00"),
        ("24:00", "0-00:24:00"),
        ("2:30:00", "0-02:30:00"),
        ("2-12", "2-12:00:00"),
        ("1-2:03", "1-02:03:00"),
        ("1-02:03:04", "1-02:03:04"),
        ("soon", None),
    ],
)
def test_slurm_times_are_slurms(text, walltime):
    assert batch.slurm_walltime(text) == walltime


EMITTED = sorted(path.parent.parent.name for path in CASES.glob("*/expected/deepspeed.json"))


def test_there_is_something_that_ratc_emitted():
    assert len(EMITTED) >= 3


@pytest.mark.parametrize("case", EMITTED)
def test_what_ratc_emits_comes_back(case, tmp_path, capsys):
    """The values that the files hold, read back from the files alone."""
    folder = CASES / case / "expected"
    names = [name for name in ("accelerate.yaml", "deepspeed.json") if (folder / name).exists()]
    assert main(["import", *(str(folder / name) for name in names), "-o", str(tmp_path / "spec.yaml")]) == 0
    tree = yaml.safe_load((tmp_path / "spec.yaml").read_text())
    lock = yaml.safe_load((folder / "lock.yaml").read_text())
    training = tree["training"]
    assert training["target_batch_size"] == lock["training"]["global_batch_size"]
    assert training["batch_size"] == lock["training"]["micro_batch_size"]
    assert training["zero_stage"] == lock["engine"]["zero_stage"]
    assert training.get("precision", "fp32") == lock["training"]["precision"]
    if "accelerate.yaml" in names:
        assert tree["resources"]["num_gpus"] == lock["parallel"]["world_size"]
        assert tree["resources"].get("nodes", 1) == lock["parallel"]["nodes"]


def test_windows_line_ends_are_no_part_of_a_value():
    items = batch.read("slurm", "run.sbatch", "#!/bin/sh\r\n#SBATCH -N 2\r\n#SBATCH -p gpu\r\nhostname\r\n")
    assert [(item.path, item.value) for item in items if isinstance(item, Carried)] == [
        ("resources.nodes", 2),
        ("resources.partition", "gpu"),
    ]


def test_accelerates_own_writer_is_read(tmp_path):
    utils = pytest.importorskip("accelerate.commands.config.config_args")
    config = utils.ClusterConfig(
        compute_environment="LOCAL_MACHINE",
        distributed_type="MULTI_GPU",
        mixed_precision="bf16",
        use_cpu=False,
        debug=False,
    )
    config.num_processes, config.num_machines = 8, 2
    config.to_yaml_file(str(tmp_path / "acc.yaml"))
    assert main(["import", str(tmp_path / "acc.yaml"), "-o", str(tmp_path / "spec.yaml")]) == 0
    tree = yaml.safe_load((tmp_path / "spec.yaml").read_text())
    assert tree["resources"] == {"nodes": 2, "num_gpus": 8}
    assert tree["training"] == {"deepspeed": False, "precision": "bf16"}


def test_no_secret_is_copied():
    for folder in folders():
        _, out, err = told(folder)
        assert "hf_aaaa" not in out + err


@pytest.mark.parametrize(
    "name",
    ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "PET_NNODES", "FSDP_VERSION", "MASTER_PORT", "WORLD_SIZE", "RANK"],
)
@pytest.mark.parametrize(("head", "option"), [("#SBATCH", "--time=1:00:00"), ("#BSUB", "-W 1:00")])
def test_no_variable_that_lies_over_a_lock_is_copied(head, option, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("job.sh").write_text(f"#!/bin/bash\n{head} {option}\nexport {name}=4\nexport MINE=4\npython train.py\n")
    assert main(["import", "job.sh", "-o", "spec.yaml"]) == 0
    assert yaml.safe_load(Path("spec.yaml").read_text())["environment"]["variables"] == {"MINE": "4"}
    said = capsys.readouterr()
    assert f"export {name}=4" in said.out + said.err


def test_a_file_that_is_there_is_kept_unless_forced(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("acc.yaml").write_text("num_processes: 2\n")
    Path("spec.yaml").write_text("mine\n")
    assert main(["import", "acc.yaml", "-o", "spec.yaml"]) == 1
    assert Path("spec.yaml").read_text() == "mine\n"
    assert "error[R403]" in capsys.readouterr().err
    assert main(["import", "acc.yaml", "-o", "spec.yaml", "--force"]) == 0
    assert "num_gpus: 2" in Path("spec.yaml").read_text()


@pytest.mark.parametrize("data", [b"", b"\x00\xff\x00", b"a: [\n", b"- 1\n", b"x" * (1 << 21)], ids=range(5))
def test_what_is_no_configuration_is_refused(data, tmp_path, capsys):
    path = tmp_path / "acc.yaml"
    path.write_bytes(data)
    assert main(["import", str(path)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert re.search(r"error\[R00\d\]", said.err)


def carried(script: str, kind: str = "slurm") -> dict[str, object]:
    """What a script gives for a spec."""
    return {path: item.value for path, item in merge.merge(batch.read(kind, "f", script)).values.items()}


def left(script: str, kind: str = "slurm") -> list[str]:
    """What of a script is reported as lost."""
    return [item.source for item in batch.read(kind, "f", script) if isinstance(item, Left) and not item.deliberate]


def test_the_last_of_repeated_options_counts():
    script = "#SBATCH --time=1:00:00 -N 1\n#SBATCH --time=5:00:00\n#SBATCH --nodes=3\nhostname\n"
    assert carried(script) == {"resources.walltime": "0-05:00:00", "resources.nodes": 3}
    whys = [item.why for item in batch.read("slurm", "f", script) if isinstance(item, Left)]
    assert "f:2:1 sets it again, and the last one wins" in whys
    assert carried("#BSUB -W 1:00\n#BSUB -q a\n#BSUB -W 2:00\n", "lsf")["resources.walltime"] == "0-02:00:00"


@pytest.mark.parametrize(
    ("kind", "script", "words"),
    [
        ("slurm", "#SBATCH --time=5:00:00 max time\npython x\n", ["max", "time"]),
        ("lsf", "#BSUB -W 5:00\n#BSUB -q a W\npython x\n", ["W"]),
    ],
)
def test_a_word_that_is_no_option_takes_the_place_of_none(kind, script, words):
    assert carried(script, kind)["resources.walltime"] == "0-05:00:00"
    assert left(script, kind)[: len(words)] == words


def test_the_last_of_repeated_commands_counts():
    script = "export A=1 B=2\nexport A=3\nmodule load a\nmodule load b\nconda activate x\nconda activate y\n"
    assert carried(script) == {
        "environment.variables.A": "3",
        "environment.variables.B": "2",
        "environment.modules": ["a", "b"],
        "environment.conda": "y",
    }
    assert carried("export A=1\nunset A\nexport B=1\nexport B=$HOME\n") == {}
    assert carried("module load a\nmodule purge\nmodule load b\n") == {"environment.modules": ["b"]}


@pytest.mark.parametrize(
    ("script", "values"),
    [
        ("export A=1\nA=2\n", {"variables.A": "2"}),
        ("A=1\nexport A\n", {"variables.A": "1"}),
        ("A=1\nA=2\nexport A B=3\n", {"variables.A": "2", "variables.B": "3"}),
        ("A=1\nexport B=$A\n", {}),
        ("export A=1\nA=$X\n", {}),
        ("export A=1\nA+=2\n", {}),
        ("export A=1\nexport -n A\n", {}),
        ("module load a/1 b\nmodule unload a\n", {"modules": ["b"]}),
        ("module add a\nml load b\nml rm b\n", {"modules": ["a"]}),
        ("module load a/1 b\nmodule swap a/1 a/2\n", {"modules": ["b"]}),
        ("ml a\nml reset\n", {}),
        ("conda activate a\nconda deactivate\nsource v/bin/activate\ndeactivate\n", {}),
    ],
)
def test_what_a_later_command_changes_is_as_it_leaves_it(script, values):
    assert carried(script) == {f"environment.{path}": value for path, value in values.items()}
    assert "RANK" not in str(carried(f"{script}RANK=3\nexport RANK\n"))


@pytest.mark.parametrize(
    "value", ["$'a\\tb'", '$"a"', '"\\$HOME/x"', '"a\\`b"', '"a\\\nb"', "~/x", "/a:~/b", "$((1 + 1))", "`date`"]
)
def test_a_value_that_only_the_shell_knows_is_left(value):
    assert carried(f"export A={value} B='2 x'\n") == {"environment.variables.B": "2 x"}
    assert carried(f"export A=1\nexport A={value}\n") == carried(f"A={value}\nexport A\n") == {}


@pytest.mark.parametrize("name", ["a*", "{b,c}/1", "x[12]", "$M", "-f"])
def test_a_module_that_only_the_shell_knows_is_left(name):
    assert carried(f"module load {name}\n") == {}


def test_parts_of_a_heterogeneous_job_are_not_taken_for_one():
    script = "#SBATCH -N1 -t 60\n#SBATCH hetjob\n#SBATCH -N2 --gres=gpu:4\n"
    assert carried(script) == {"resources.walltime": "0-01:00:00"}
    assert "gres gpu:4" in left(script)
    assert carried("#SBATCH -t 60 -A us\n#SBATCH hetjob\n#SBATCH -t 1\n") == {"resources.account": "us"}


@pytest.mark.parametrize(
    "line", ["#!/usr/bin/env python3", "#!/usr/bin/perl", "#!/bin/csh -f", "#! /bin/tcsh", "#!/usr/bin/env -S fish -i"]
)
def test_a_script_of_another_language_has_directives_and_no_commands(line):
    script = f"{line}\n#SBATCH -t 60\nexport X=1\nmodule load cuda\n"
    assert carried(script) == {"resources.walltime": "0-01:00:00"}
    assert left(script) == [line]


@pytest.mark.parametrize(
    "line", ["#!/bin/bash -l", "#!/usr/bin/env bash", "#!/usr/bin/env -S zsh -f", "#!/bin/sh", "#", "\ufeff#!/bin/bash"]
)
def test_a_script_of_a_shell_has_both(line):
    script = f"{line}\n#SBATCH -t 60\nmodule load cuda\n"
    assert carried(script) == {"resources.walltime": "0-01:00:00", "environment.modules": ["cuda"]}


def test_a_comment_with_space_before_it_is_no_first_command():
    assert carried("#!/bin/bash\n  # sizes\n\t#SBATCH -N 9\n#SBATCH -t 60\n") == {"resources.walltime": "0-01:00:00"}


def test_gpus_of_a_task_with_their_card_are_a_number():
    script = "#SBATCH -N1 --ntasks-per-node=2 --gpus-per-task=a100:1\n"
    assert carried(script) == {"resources.nodes": 1, "resources.gpus_per_node": 2}
    assert left(script) == ["a100"]


def test_sizes_and_arrays_of_lsf_are_not_taken_for_names():
    assert carried("#BSUB -nnodes 4\n", "lsf") == {"resources.nodes": 4}
    assert carried('#BSUB -J "a[1-10]%2"\n', "lsf") == {}
    assert left('#BSUB -J "a[1-10]%2"\n', "lsf") == ["J a[1-10]%2"]


SIZES = {
    "tasks by node, GPUs by task": (
        "slurm",
        "--ntasks=16 --ntasks-per-node=8 --gpus-per-task=1",
        {"nodes": 2, "gpus_per_node": 8},
    ),
    "nodes and tasks by node": (
        "slurm",
        "-N 2 --ntasks-per-node=4 --gpus-per-task=a100:1 -c 8",
        {"nodes": 2, "gpus_per_node": 4, "cpus": 32},
    ),
    "nodes and tasks": ("slurm", "-N 2 -n 8 --gpus-per-task=1", {"nodes": 2, "gpus_per_node": 4}),
    "one task": ("slurm", "-n 1 -c 16 --gres=gpu:2", {"gpus_per_node": 2, "cpus": 16}),
    "cores by GPU": ("slurm", "-N 1 --gpus-per-node=4 --cpus-per-gpu=6", {"nodes": 1, "gpus_per_node": 4, "cpus": 24}),
    "memory by core": ("slurm", "-N 1 -c 8 --mem-per-cpu=4G", {"nodes": 1, "cpus": 8, "memory": "32GB"}),
    "memory by GPU": ("slurm", "-N 1 --gpus-per-node=2 --mem-per-gpu=1500", {"nodes": 1, "gpus_per_node": 2}),
    "tasks, but no nodes": ("slurm", "--ntasks=16 --gpus-per-task=1", {}),
    "a range of nodes": ("slurm", "--nodes=2-4", {}),
    "slots by host, GPUs by task": (
        "lsf",
        '-n 8 -R "span[ptile=4]" -gpu num=1/task',
        {"nodes": 2, "gpus_per_node": 4},
    ),
    "slots by host, GPUs by host": (
        "lsf",
        '-n 8 -R "span[ptile=4]" -gpu "num=2/host"',
        {"nodes": 2, "gpus_per_node": 2},
    ),
    "GPUs in all": ("slurm", "--gpus=16", {"num_gpus": 16}),
    "GPUs in all, and by node": ("slurm", "--gpus=16 --gpus-per-node=8", {"nodes": 2, "gpus_per_node": 8}),
    "GPUs in all, which are those of a node": ("slurm", "--gpus=8 --gpus-per-node=8", {"nodes": 1, "gpus_per_node": 8}),
    "one host": ("lsf", '-n 8 -R "span[hosts=1]" -gpu num=1/task', {"nodes": 1, "gpus_per_node": 8}),
    "several resource strings": (
        "lsf",
        '-R "rusage[mem=4G]" -n 4 -R "span[ptile=2]" -gpu num=2',
        {"nodes": 2, "gpus_per_node": 2},
    ),
    "slots, but no hosts": ("lsf", "-n 8 -gpu num=1/task", {}),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_worked_out_or_said_to_be_lost(name):
    kind, options, expected = SIZES[name]
    sign = "#SBATCH" if kind == "slurm" else "#BSUB"
    found = {path.removeprefix("resources."): value for path, value in carried(f"{sign} {options}\n", kind).items()}
    if "memory" in found and "memory" not in expected:
        assert found.pop("memory") == "3000MB"
    assert found == expected
    if not expected:
        assert left(f"{sign} {options}\n", kind)


def imported(tmp_path, monkeypatch, capsys, script):
    """The spec that a script makes, as a tree, and what is said."""
    monkeypatch.chdir(tmp_path)
    Path("job.sbatch").write_text(script)
    assert main(["import", "job.sbatch", "-o", "spec.yaml"]) == 0
    return yaml.safe_load(Path("spec.yaml").read_text())["resources"], capsys.readouterr().err


@pytest.mark.parametrize("number", [8, 16])
def test_the_nodes_follow_from_all_gpus_and_those_of_the_launcher(tmp_path, monkeypatch, capsys, number):
    script = f"#!/bin/bash\n#SBATCH --gpus={number}\ntorchrun --nproc-per-node 8 train.py\n"
    found, _ = imported(tmp_path, monkeypatch, capsys, script)
    assert found == {"gpus_per_node": 8, "nodes": number // 8}


def test_gpus_of_unknown_nodes_are_told(tmp_path, monkeypatch, capsys):
    found, said = imported(tmp_path, monkeypatch, capsys, "#!/bin/bash\n#SBATCH --gpus=16\nsrun python train.py\n")
    assert found == {"num_gpus": 16}
    assert "Slurm chooses on how many nodes they run: set `resources.nodes`" in said


@pytest.mark.parametrize(
    ("value", "number", "lost"),
    [
        ("gpu:4", 4, []),
        ("gpu", 1, []),
        ("gpu:a100:2", 2, ["a100"]),
        ("gpu:1g.5gb:1", 1, ["1g.5gb"]),
        ("gpu:3g.20gb", 1, ["3g.20gb"]),
        ("gpu:4,lscratch:200", 4, ["lscratch:200"]),
        ("lscratch:200,gpu:v100:2", 2, ["lscratch:200", "v100"]),
        ("gpu:a100:2,gpu:v100:1", None, ["a100", "v100", "gres gpu:a100:2,gpu:v100:1"]),
        ("craynetwork:1", None, ["craynetwork:1"]),
        ("gpu:4(S:0-1)", 4, []),
        ("gpu:999999999999", None, ["gres gpu:999999999999"]),
    ],
)
def test_generic_resources(value, number, lost):
    script = f"#SBATCH --gres={value}\n"
    assert carried(script).get("resources.gpus_per_node") == number
    assert left(script) == lost


NO_COMMANDS = {
    "a here-document": "cat <<EOF > job.sh\nmodule load x\nexport A=1\nEOF\n",
    "a quoted here-document": "cat <<-'END'\n\tmodule load x\n\tEND\n",
    "an array": "ml=(a\n module load x\n)\n",
    "a quoted text": "echo 'first\nmodule load x\nexport A=1\n'\n",
    "both branches": 'if [ -n "$X" ]; then\n  module load x\nelse\n  module load y\nfi\n',
    "a loop": "for m in a b; do\n  module load x\ndone\n",
    "a case": "case $HOST in\n  a) module load x ;;\n  *) module load y ;;\nesac\n",
    "a function": "setup() {\n  module load x\n  export A=1\n}\n",
    "a test": "[ -d /x ] && module load x\n",
    "another way": "module avail x || module load y\n",
    "after the end": "exit 0\nmodule load x\n",
    "after another program": "exec ./x\nmodule load x\n",
    "a pipeline": "module load x 2>&1 | tee log\nexport A=1 | cat\n",
    "the background": "module load x &\nexport A=1 &\n",
    "behind what bash alone can read": "cat <<-'A' > x <<B\n\tA\nmodule load x\nB\nmodule load y\n",
    "a comment": "# module load x\n",
}


@pytest.mark.parametrize("name", NO_COMMANDS)
def test_what_is_no_command_or_may_not_run_is_left_and_listed(name):
    script = f"#!/bin/bash\n#SBATCH -N 2\n{NO_COMMANDS[name]}export KEPT=1\n"
    expected = {"resources.nodes": 2, "environment.variables.KEPT": "1"}
    if name in ("after the end", "after another program", "behind what bash alone can read"):
        del expected["environment.variables.KEPT"]
    assert carried(script) == expected
    if name != "a comment":
        assert left(script)
    if name in ("both branches", "a case"):
        assert [source for source in left(script) if source.startswith("module")] == ["module load x", "module load y"]


def test_commands_in_a_row_are_commands():
    script = "cd /x && module load a && source v/bin/activate; export A=1 B='$HOME'\nmodule load b || exit 1\n"
    assert carried(script) == {
        "environment.modules": ["a", "b"],
        "environment.venv": "v",
        "environment.variables.A": "1",
        "environment.variables.B": "$HOME",
    }
    assert carried("srun torchrun --nnodes=2 \\\n  x.py 2>&1 | tee log\n") == {
        "resources.nodes": 2,
        "entrypoint.script": "x.py",
    }


def test_no_memory_at_all_is_not_carried():
    """Slurm reads 0 as all of a node's memory."""
    assert carried("#SBATCH --mem=0\n") == {}
    document, _ = parse("f", b"resources: {memory: 0MB}\n")
    assert document is not None
    merged = merge.merge(unified.read(document))
    text, _ = specification.write(merged, ["f"])
    assert "memory" not in yaml.safe_load(text).get("resources", {})
    assert [item.source for item in merged.left] == ["resources.memory"]


@pytest.mark.parametrize("name", ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "RANK", "WORLD_SIZE", "PET_NNODES"])
def test_what_launchers_read_is_not_copied(name):
    assert carried(f"export {name}=4\n") == {}
    assert left(f"export {name}=4\n") == [f"export {name}=4"]


if __name__ == "__main__":
    os.environ["NO_COLOR"] = "1"
    for place in folders():
        status, out, err = told(place)
        (place / "expected.txt").write_text(err)
        if status == 0:
            (place / "expected.yaml").write_text(out)


def test_what_yaml_cannot_hold_is_left_with_the_reason(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run.sbatch").write_bytes(b"#!/bin/bash\n#SBATCH --time=1:00:00\nmodule load cuda\x00\npython train.py\n")
    assert main(["import", "run.sbatch", "-o", "spec.yaml"]) == 0
    assert "U+0000" in capsys.readouterr().err
    assert b"\x00" not in Path("spec.yaml").read_bytes()
    assert main(["validate", "spec.yaml"]) in (0, 1)
    assert "R008" not in capsys.readouterr().err
