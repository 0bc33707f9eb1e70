"""Import of sbatch and bsub scripts: the spec values of their directives and commands."""

from pathlib import Path

import pytest
import yaml

from ratc.cli import main
from ratc.importers import batch, merge, specification, unified
from ratc.importers.model import Left
from ratc.yaml.parse import parse


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
def test_slurm_time_formats_become_walltimes(text, walltime):
    assert batch.slurm_walltime(text) == walltime


def carried(script: str, kind: str = "slurm") -> dict[str, object]:
    """What a script gives for a spec."""
    return {path: item.value for path, item in merge.merge(batch.read(kind, "f", script)).values.items()}


def left(script: str, kind: str = "slurm") -> list[str]:
    """What of a script is reported as lost."""
    return [item.source for item in batch.read(kind, "f", script) if isinstance(item, Left) and not item.deliberate]


def test_last_of_repeated_directives_wins():
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
def test_word_that_is_no_option_is_left_and_the_options_are_read(kind, script, words):
    assert carried(script, kind)["resources.walltime"] == "0-05:00:00"
    assert left(script, kind)[: len(words)] == words


def test_last_of_repeated_commands_wins():
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
def test_later_commands_change_the_imported_environment(script, values):
    assert carried(script) == {f"environment.{path}": value for path, value in values.items()}
    assert "RANK" not in str(carried(f"{script}RANK=3\nexport RANK\n"))


@pytest.mark.parametrize(
    "value", ["$'a\\tb'", '$"a"', '"\\$HOME/x"', '"a\\`b"', '"a\\\nb"', "~/x", "/a:~/b", "$((1 + 1))", "`date`"]
)
def test_environment_value_that_needs_the_shell_is_not_imported(value):
    assert carried(f"export A={value} B='2 x'\n") == {"environment.variables.B": "2 x"}
    assert carried(f"export A=1\nexport A={value}\n") == carried(f"A={value}\nexport A\n") == {}


@pytest.mark.parametrize("value", ["{日,月}", "a{1..\U0001f600}", "{\U000f0000"])
def test_character_after_a_brace_is_kept(value):
    (left,) = (item for item in batch.read("slurm", "f", f"#!/bin/bash\nls {value}\n") if isinstance(item, Left))
    assert left.source == f"ls {value}"


@pytest.mark.parametrize("name", ["a*", "{b,c}/1", "x[12]", "$M", "-f"])
def test_module_name_that_needs_the_shell_is_not_imported(name):
    assert carried(f"module load {name}\n") == {}


def test_parts_of_a_heterogeneous_job_are_not_merged():
    script = "#SBATCH -N1 -t 60\n#SBATCH hetjob\n#SBATCH -N2 --gres=gpu:4\n"
    assert carried(script) == {"resources.walltime": "0-01:00:00"}
    assert "gres gpu:4" in left(script)
    assert carried("#SBATCH -t 60 -A us\n#SBATCH hetjob\n#SBATCH -t 1\n") == {"resources.account": "us"}


@pytest.mark.parametrize(
    "line", ["#!/usr/bin/env python3", "#!/usr/bin/perl", "#!/bin/csh -f", "#! /bin/tcsh", "#!/usr/bin/env -S fish -i"]
)
def test_directives_but_not_commands_of_a_non_shell_script_are_imported(line):
    script = f"{line}\n#SBATCH -t 60\nexport X=1\nmodule load cuda\n"
    assert carried(script) == {"resources.walltime": "0-01:00:00"}
    assert left(script) == [line]


@pytest.mark.parametrize(
    "line", ["#!/bin/bash -l", "#!/usr/bin/env bash", "#!/usr/bin/env -S zsh -f", "#!/bin/sh", "#", "\ufeff#!/bin/bash"]
)
def test_directives_and_commands_of_a_shell_script_are_imported(line):
    script = f"{line}\n#SBATCH -t 60\nmodule load cuda\n"
    assert carried(script) == {"resources.walltime": "0-01:00:00", "environment.modules": ["cuda"]}


def test_indented_comment_does_not_end_the_directives():
    assert carried("#!/bin/bash\n  # sizes\n\t#SBATCH -N 9\n#SBATCH -t 60\n") == {"resources.walltime": "0-01:00:00"}


def test_gpus_per_task_with_a_type_become_gpus_per_node():
    script = "#SBATCH -N1 --ntasks-per-node=2 --gpus-per-task=a100:1\n"
    assert carried(script) == {"resources.nodes": 1, "resources.gpus_per_node": 2}
    assert left(script) == ["a100"]


def test_lsf_array_and_node_count_are_not_read_as_job_name():
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
    "a range of nodes": (
        "slurm",
        "--nodes=2-8 --gpus-per-node=4",
        {"nodes": {"min": 2, "max": 8}, "gpus_per_node": 4},
    ),
    "a range of nodes, tasks by node": (
        "slurm",
        "-N 2-4 --ntasks-per-node=4 --gpus-per-task=1",
        {"nodes": {"min": 2, "max": 4}, "gpus_per_node": 4},
    ),
    "a range of nodes, and all tasks": ("slurm", "-N 2-4 --ntasks=16", {"nodes": {"min": 2, "max": 4}}),
    "a range of nodes, all GPUs and those of a node": (
        "slurm",
        "-N 2-4 --gpus=16 --gpus-per-node=8",
        {"nodes": 2, "gpus_per_node": 8},
    ),
    "a list of node counts": ("slurm", "--nodes=2,4,8", {}),
    "a range that descends": ("slurm", "--nodes=8-2", {}),
    "a range from no node": ("slurm", "--nodes=0-2", {}),
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
def test_sizes_are_computed_or_reported_as_lost(name):
    kind, options, expected = SIZES[name]
    sign = "#SBATCH" if kind == "slurm" else "#BSUB"
    found = {path.removeprefix("resources."): value for path, value in carried(f"{sign} {options}\n", kind).items()}
    if "memory" in found and "memory" not in expected:
        assert found.pop("memory") == "3000MB"
    assert found == expected
    if not expected:
        assert left(f"{sign} {options}\n", kind)


@pytest.mark.parametrize("more", ["--gpus=16", "--gpus=20 --gpus-per-node=8", "--gpus=64 --gpus-per-node=8"])
def test_total_gpus_outside_of_a_node_range_are_reported_as_lost(more):
    merged = merge.merge(batch.read("slurm", "f", f"#SBATCH -N 2-4 {more}\n"))
    assert merged.values["resources.nodes"].value == {"min": 2, "max": 4}
    assert "resources.num_gpus" not in merged.values
    assert [item.source for item in merged.left if not item.deliberate] == [more.split()[0][2:].replace("=", " ")]


def imported(tmp_path, monkeypatch, capsys, script):
    """The spec that a script makes, as a tree, and what is said."""
    monkeypatch.chdir(tmp_path)
    Path("job.sbatch").write_text(script)
    assert main(["import", "job.sbatch", "-o", "spec.yaml"]) == 0
    return yaml.safe_load(Path("spec.yaml").read_text())["resources"], capsys.readouterr().err


@pytest.mark.parametrize("number", [8, 16])
def test_node_count_is_total_gpus_divided_by_launcher_processes(tmp_path, monkeypatch, capsys, number):
    script = f"#!/bin/bash\n#SBATCH --gpus={number}\ntorchrun --nproc-per-node 8 train.py\n"
    found, _ = imported(tmp_path, monkeypatch, capsys, script)
    assert found == {"gpus_per_node": 8, "nodes": number // 8}


def test_total_gpus_without_a_node_count_are_reported(tmp_path, monkeypatch, capsys):
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
def test_gres_becomes_gpus_per_node_or_is_left(value, number, lost):
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
def test_commands_that_may_not_run_are_left_and_listed(name):
    script = f"#!/bin/bash\n#SBATCH -N 2\n{NO_COMMANDS[name]}export KEPT=1\n"
    expected = {"resources.nodes": 2, "environment.variables.KEPT": "1"}
    if name in ("after the end", "after another program", "behind what bash alone can read"):
        del expected["environment.variables.KEPT"]
    assert carried(script) == expected
    if name != "a comment":
        assert left(script)
    if name in ("both branches", "a case"):
        assert [source for source in left(script) if source.startswith("module")] == ["module load x", "module load y"]


def test_chained_commands_are_imported():
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


def test_memory_request_of_zero_is_not_imported():
    """Slurm reads 0 as all of a node's memory."""
    assert carried("#SBATCH --mem=0\n") == {}
    document, _ = parse("f", b"resources: {memory: 0MB}\n")
    assert document is not None
    merged = merge.merge(unified.read(document))
    text, _ = specification.write(merged, ["f"])
    assert "memory" not in yaml.safe_load(text).get("resources", {})
    assert [item.source for item in merged.left] == ["resources.memory"]


@pytest.mark.parametrize("name", ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "RANK", "WORLD_SIZE", "PET_NNODES"])
def test_launcher_variables_are_not_imported(name):
    assert carried(f"export {name}=4\n") == {}
    assert left(f"export {name}=4\n") == [f"export {name}=4"]


def test_control_characters_are_left_out_with_the_reason(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run.sbatch").write_bytes(b"#!/bin/bash\n#SBATCH --time=1:00:00\nmodule load cuda\x00\npython train.py\n")
    assert main(["import", "run.sbatch", "-o", "spec.yaml"]) == 0
    assert "U+0000" in capsys.readouterr().err
    assert b"\x00" not in Path("spec.yaml").read_bytes()
    assert main(["validate", "spec.yaml"]) in (0, 1)
    assert "R008" not in capsys.readouterr().err


def test_node_range_names_its_line_and_a_conflicting_file(tmp_path, monkeypatch, capsys):
    resources, _ = imported(tmp_path, monkeypatch, capsys, "#SBATCH --nodes=2-8\n")
    assert resources == {"nodes": {"min": 2, "max": 8}}
    text = Path("spec.yaml").read_text()
    assert "min: 2  # from job.sbatch:1" in text
    assert "max: 8  # from job.sbatch:1" in text
    Path("accelerate.yaml").write_text("compute_environment: LOCAL_MACHINE\nnum_machines: 4\n")
    assert main(["import", "job.sbatch", "accelerate.yaml", "-o", "both.yaml"]) == 0
    assert "`resources.nodes` is 4 here and {min: 2, max: 8} at job.sbatch:1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "venv"),
    [
        ("~/venv", "~/venv"),
        ("$HOME/venv", "~/venv"),
        ('"${HOME}/my venv"', "~/my venv"),
        ("/opt/venv", "/opt/venv"),
        ("$PLACE/venv", None),
        ("~other/venv", None),
    ],
)
def test_a_virtual_environment_in_the_home_folder_is_carried(word: str, venv: str | None) -> None:
    end = '/bin/activate"' if word.endswith('"') else "/bin/activate"
    found = carried(f"source {word.removesuffix(chr(34))}{end}\n")
    assert found.get("environment.venv") == venv
