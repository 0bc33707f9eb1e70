"""The commands in processes of their own, as users call them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ratc.cli import GROUPS, init
from tests.effort import HANGS_S
from tests.places import CASES, ROOT


def ratc(*arguments, cwd=None, **variables):
    """Run the command; returns the finished process with its text."""
    return subprocess.run(
        [sys.executable, "-m", "ratc", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}", **variables},
        capture_output=True,
        text=True,
        timeout=HANGS_S,
        check=False,
    )


def small_spec(folder: Path, more: str = "") -> Path:
    path = folder / "spec.yaml"
    text = (
        "experiment_name: small\ndata: {data_dir: data}\nresources: {num_gpus: 0, cpus: 2}\ntraining: {batch_size: 2}\n"
    )
    path.write_text(text + more)
    return path


@pytest.mark.parametrize(
    "words", [("--help",), ("schema",), ("explain", "spec.yaml", "--all"), ("diff", "spec.yaml", "other.yaml")]
)
def test_a_terminal_without_unicode_gets_escapes(tmp_path, words):
    small_spec(tmp_path, 'description: "a → b"\n')
    (tmp_path / "other.yaml").write_text((tmp_path / "spec.yaml").read_text().replace("a →", "c →"))
    done = ratc(*words, cwd=tmp_path, PYTHONIOENCODING="latin-1", PYTHONUTF8="0")
    assert (done.returncode, "internal error" in done.stderr) == (int(words[0] == "diff"), False), done.stderr
    assert "\\u2" in done.stdout


@pytest.mark.parametrize(
    "words", [("check",), ("trust",), ("why",), ("init",), ("compile", "{}/spec.yaml"), ("schema",)]
)
def test_a_removed_working_folder_is_reported(tmp_path, words):
    small_spec(tmp_path)
    (tmp_path / "gone").mkdir()
    line = 'cd "$1"/gone && rmdir "$1"/gone && shift && exec "$@"'
    command = [sys.executable, "-m", "ratc", *(word.format(tmp_path) for word in words)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}"}
    done = subprocess.run(
        ["sh", "-c", line, "sh", tmp_path, *command], env=environment, capture_output=True, text=True, check=False
    )
    if words == ("schema",):
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert done.returncode == 1
        assert done.stderr.startswith("error[R001]: the current folder of the shell does not exist any more\n")


def test_trust_names_a_list_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    done = ratc("trust", ".", cwd=tmp_path, RATC_CONFIG=str(tmp_path / "file"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"ratc trust: cannot write {tmp_path}/file/trusted: File exists\n"


def test_ratc_without_a_command_lists_the_commands():
    done = ratc()
    assert done.returncode == 2
    assert "compile" in done.stdout
    assert ratc("--help").returncode == 0
    assert ratc("--version").stdout.startswith("ratc 0.")


def test_the_help_groups_the_commands_and_its_examples_are_real(tmp_path):
    said = ratc("--help").stdout
    titles = [line[:-1] for line in said.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == [*GROUPS, "Examples"]
    examples = [line.strip().split("  ")[0].split()[1:] for line in said.splitlines() if line.startswith("  ratc ")]
    assert len(examples) >= 4
    (tmp_path / "data").mkdir()
    for words in examples:
        if words[0] != "train":
            layer = () if words[0] == "init" else ("--set", "training.batch_size=2")
            done = ratc(*words, *layer, cwd=tmp_path)
            assert done.returncode == 0, (words, done.stderr)


def test_errors_of_a_spec_hide_warnings_about_its_plan(tmp_path):
    small_spec(tmp_path, "task_type: segmentatio\n")
    for words in ("compile", "validate"):
        done = ratc(words, "spec.yaml", "--target", "slurm", cwd=tmp_path)
        assert (done.returncode, "R103" in done.stderr, "R320" in done.stderr) == (1, True, False)
    small_spec(tmp_path).write_text(
        "experiment_name: small\ndata: {data_dir: data}\nresources: {num_gpus: 0, cpus: 2}\n"
        "training: {target_batch_size: 8, epochs: 1, warmup_epochs: 3}\n"
    )
    done = ratc("compile", "spec.yaml", "--target", "slurm", cwd=tmp_path)
    assert (done.returncode, "R313" in done.stderr) == (1, True)
    assert "R320" not in done.stderr
    assert "R305" not in done.stderr


@pytest.mark.parametrize(("rate", "warned"), [("10", True), ("0.5", True), ("0.1", False), ("1.0e-3", False)])
def test_r241_for_an_extreme_learning_rate(tmp_path, rate, warned):
    small_spec(tmp_path)
    (tmp_path / "data").mkdir()
    done = ratc("validate", "spec.yaml", "--set", f"training.learning_rate={rate}", cwd=tmp_path)
    assert (done.returncode, "warning[R241]" in done.stderr) == (0, warned), done.stderr


def test_a_mistyped_command_gives_a_suggestion():
    done = ratc("complie")
    assert done.returncode == 2
    assert "did you mean `compile`?" in done.stderr


def test_an_unknown_option_is_misuse(tmp_path):
    assert ratc("compile", str(small_spec(tmp_path)), "--frobnicate").returncode == 2


def test_validate_imports_no_heavy_package(tmp_path):
    spec = small_spec(tmp_path)
    code = (
        "import sys; from ratc.cli import main; main(sys.argv[1:]); "
        "print(*sorted({n.split('.')[0] for n in sys.modules} & "
        "{'torch', 'numpy', 'rich', 'jinja2', 'pydantic', 'pynvml', 'accelerate'}))"
    )
    command = [sys.executable, "-c", code, "validate", str(spec)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_schema_prints_the_schema():
    assert json.loads(ratc("schema").stdout)["title"] == "ratc experiment"
    assert json.loads(ratc("schema", "--facts").stdout)["title"] == "ratc hardware facts"


@pytest.mark.parametrize("task", init.TASKS)
def test_init_writes_a_spec_of_each_task_that_compiles(tmp_path, task):
    done = ratc("init", "--task", task, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = ratc("compile", "config.yaml", "--num-gpus", "0", "--trust", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"task_type: {task}\n" in (tmp_path / done.stdout.strip() / "lock.yaml").read_text()


@pytest.mark.parametrize("task", init.TASKS)
def test_uncommented_cluster_lines_of_a_starter_spec_compile(tmp_path, task):
    assert ratc("init", "--task", task, cwd=tmp_path).returncode == 0
    spec = tmp_path / "config.yaml"
    spec.write_text(re.sub(r"^# ?(resources:|  )", r"\1", spec.read_text(), flags=re.M))
    done = ratc("compile", "config.yaml", "--target", "slurm", "--batch-size", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    script = next(tmp_path.glob("compiled/*/slurm/job.sbatch")).read_text()
    for line in ("--partition=gpu", "--nodes=1", "--time=0-10:00:00", "--gpus-per-node=4"):
        assert line in script


def test_init_keeps_existing_code_and_gitignore(tmp_path):
    for name in ("own.py", ".gitignore"):
        (tmp_path / name).write_text("mine\n")
    done = ratc("init", "--task", "custom", "--force", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "kept: .gitignore, which is there already\nkept: own.py, which is there already\n" in done.stderr
    assert {(tmp_path / name).read_text() for name in ("own.py", ".gitignore")} == {"mine\n"}


def test_the_custom_starter_trains_on_its_generated_data(tmp_path):
    assert ratc("init", "--task", "custom", cwd=tmp_path).returncode == 0
    done = ratc("train", "config.yaml", "--trust", "--num-gpus", "0", "--set", "training.epochs=4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [found] = tmp_path.glob("outputs/*/results.json")
    assert json.loads(found.read_text())["test"]["closeness"] > 0.95
    git = subprocess.run(["git", "init", "-q"], cwd=tmp_path)
    assert git.returncode == 0
    seen = subprocess.run(["git", "status", "--short", "-uall"], cwd=tmp_path, capture_output=True, text=True).stdout
    assert sorted({line.split()[1].split("/")[0] for line in seen.splitlines()}) == [
        *(".gitignore", "compiled", "config.yaml", "experiment.schema.json", "own.py"),
    ]


def test_init_writes_a_spec_that_is_valid_and_binds_its_schema(tmp_path):
    done = ratc("init", "--task", "segmentation", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "config.yaml").read_text()
    bound = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    assert bound
    json.loads((tmp_path / bound[1]).read_text())
    assert ratc("validate", "config.yaml", cwd=tmp_path).returncode == 0
    again = ratc("init", cwd=tmp_path)
    assert again.returncode == 1
    assert "exists already" in again.stderr
    assert (tmp_path / "config.yaml").read_text() == text
    assert ratc("init", "--force", cwd=tmp_path).returncode == 0
    assert "did you mean `segmentation`" in ratc("init", "x.yaml", "--task", "segmentaton", cwd=tmp_path).stderr


def test_init_in_a_folder_whose_name_is_no_experiment_name(tmp_path):
    folder = tmp_path / "my first (run)"
    folder.mkdir()
    assert ratc("init", cwd=folder).returncode == 0
    assert ratc("validate", "config.yaml", cwd=folder).returncode == 0


def test_layers_override_each_other_in_order(tmp_path):
    spec = small_spec(tmp_path, "seed: 1\n")

    def compiled(*options, **variables):
        done = ratc("compile", str(spec), *options, **variables)
        assert done.returncode == 0, done.stderr
        text = (tmp_path / "compiled/small/local/lock.yaml").read_text()
        return yaml.safe_load(text)["seed"], re.search(r"^seed:.*$", text, re.M)[0]

    assert compiled() == (1, "seed: 1")
    assert compiled(RAT_SEED="2") == (2, "seed: 2  # RAT_SEED")
    assert compiled("--seed", "3", RAT_SEED="2") == (3, "seed: 3  # --seed")
    assert compiled("--seed", "3", "--set", "seed=4") == (4, "seed: 4  # --set seed")


def test_overlays_of_a_scheduler_apply_to_its_target_only(tmp_path):
    spec = small_spec(tmp_path)
    (tmp_path / "cluster_spec.yaml").write_text("seed: [1]\n")
    (tmp_path / "slurm_spec.yaml").write_text("training: {epochs: 0}\n")
    assert ratc("validate", str(spec)).returncode == 0
    slurm = ratc("validate", str(spec), "--target", "slurm")
    assert "cluster_spec.yaml:1:7" in slurm.stderr
    assert "slurm_spec.yaml:1:20" in slurm.stderr
    assert "slurm_spec" not in ratc("validate", str(spec), "--target", "lsf").stderr


def test_a_path_from_the_shell_is_relative_to_the_working_folder(tmp_path):
    (tmp_path / "specs").mkdir()
    small_spec(tmp_path / "specs")

    def data_dir(*options, **variables):
        done = ratc("compile", "specs/spec.yaml", *options, cwd=tmp_path, **variables)
        assert done.returncode == 0, done.stderr
        return yaml.safe_load((tmp_path / "specs/compiled/small/local/lock.yaml").read_text())["data"]["data_dir"]

    assert data_dir() == "data"
    assert data_dir("--data-dir", "data") == "../data"
    assert data_dir(RAT_DATA_DIR="data") == "../data"
    assert data_dir("--data-dir", "/shared/data") == "/shared/data"
    assert data_dir("--set", "data.data_dir=data") == "data"


def test_the_command_in_the_header_reproduces_the_files(tmp_path):
    spec = small_spec(tmp_path)
    options = ["--epochs", "3", "--data-dir", "it's here", "--set", "training.betas=[0.8, 0.9]", "--debug"]
    assert ratc("compile", str(spec), *options, cwd=tmp_path).returncode == 0
    folder = tmp_path / "compiled/small/local"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    command = re.search(r"from this folder: ratc (.*)$", (folder / "lock.yaml").read_text(), re.M)[1]
    shown = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True)
    done = ratc(*shown.stdout.split("\0")[:-1], cwd=folder)
    assert done.returncode == 0, done.stderr
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    # Only the words that say which layer a value came from may differ.
    plain = {name: re.sub(rb"  # (--set|--|RAT_).*", b"", data) for name, data in before.items() if name != "lock.yaml"}
    assert {name: data for name, data in after.items() if name != "lock.yaml"} == plain
    assert yaml.safe_load(after["lock.yaml"]) == yaml.safe_load(before["lock.yaml"])


def test_explain_shows_the_sources_of_a_value():
    spec = str(CASES / "product-document-cpu" / "spec.yaml")
    facts = str(CASES / "product-document-cpu" / "facts.yaml")
    text = ratc("explain", spec, "training.batch_size", "--facts", facts).stdout
    assert text.splitlines()[0] == "training.micro_batch_size = 8  [worked out]"
    assert "largest divisor of 32 / 1 = 32 up to 8" in text
    assert "spec.yaml:19:22" in text
    assert "facts.yaml:1:16" in text
    assert "did you mean `training.learning_rate`" in ratc("explain", spec, "learning_rat", "--facts", facts).stderr
    whole = ratc("explain", spec, "--facts", facts)
    assert whole.returncode == 0
    assert "data.num_workers = 7" in whole.stdout


def test_r401_suggests_a_known_target(tmp_path):
    done = ratc("compile", str(small_spec(tmp_path)), "--target", "slrum")
    assert done.returncode == 1
    assert "R401" in done.stderr
    assert "did you mean `slurm`?" in done.stderr


@pytest.mark.parametrize(("target", "script"), [("slurm", "job.sbatch"), ("lsf", "job.lsf")])
def test_r320_warns_of_a_job_compiled_without_cluster_facts(tmp_path, target, script):
    done = ratc("compile", str(small_spec(tmp_path)), "--target", target, "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "warning[R320]" in done.stderr
    assert (tmp_path / "out" / script).exists()


def test_cards_of_the_catalogue_determine_the_precision(tmp_path):
    spec = small_spec(tmp_path)
    spec.write_text(spec.read_text().replace("num_gpus: 0", "num_gpus: 1"))
    expected = {"v100-16": "fp16", "p100-16": "fp32", "t4": "fp16", "a10": "bf16", "h200": "bf16", "b200": "bf16"}
    for card, precision in {**expected, "rtx4090": "bf16", "mi250x": "bf16", "mi300x": "bf16"}.items():
        done = ratc("explain", str(spec), "training.precision", "--gpu", card)
        assert done.stdout.startswith(f"training.precision = {precision} "), (card, done.stdout, done.stderr)


MAPPING = (
    "import torch\n\n\n"
    "class Net(torch.nn.Module):\n"
    "    def __init__(self):\n"
    "        super().__init__()\n"
    "        self.layer = torch.nn.Conv2d(3, 1, 3, padding=1)\n\n"
    "    def forward(self, image):\n"
    "        return {'out': self.layer(image), 'aux': None}\n"
)


@pytest.mark.parametrize("batch", ["batch_size: 4", "target_batch_size: 8"])
def test_a_model_that_returns_a_mapping_compiles_only_with_model_output(tmp_path, batch):
    (tmp_path / "own.py").write_text(MAPPING)
    (tmp_path / "spec.yaml").write_text(
        "experiment_name: keys\nmodel: {name: 'own:Net'}\ndata: {data_dir: data, image_size: 64}\n"
        f"training: {{{batch}}}\nresources: {{num_gpus: 1, gpu: h100, cpus: 2}}\n"
    )
    done = ratc("compile", "spec.yaml", "-o", "out", cwd=tmp_path, RATC_SKIP_BATCH_CHECK="")
    assert done.returncode == 1, done.stderr
    assert "error[R574]: the model returns a mapping with the keys `out`, `aux`" in done.stderr
    assert "`model: {output: out}`" in done.stderr
    named = ("compile", "spec.yaml", "-o", "out", "--set", "model.output=out")
    done = ratc(*named, cwd=tmp_path, RATC_SKIP_BATCH_CHECK="")
    assert done.returncode == 0, done.stderr
    assert "\n  output: out" in (tmp_path / "out/lock.yaml").read_text()
    assert "R316" not in done.stderr


NORMALISED = (
    "import torch\n\n\n"
    "def Net():\n"
    "    gate = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.InstanceNorm2d(3))\n"
    "    return torch.nn.Sequential(gate, torch.nn.Conv2d(3, 1, 1), torch.nn.Upsample(64))\n"
)


@pytest.mark.parametrize("batch", ["batch_size: 4", "target_batch_size: 8"])
def test_a_model_that_normalises_single_values_does_not_compile(tmp_path, batch):
    (tmp_path / "own.py").write_text(NORMALISED)
    (tmp_path / "spec.yaml").write_text(
        "experiment_name: gate\nmodel: {name: 'own:Net'}\ndata: {data_dir: data, image_size: 64}\n"
        f"training: {{{batch}}}\nresources: {{num_gpus: 1, gpu: h100, cpus: 2}}\n"
    )
    done = ratc("compile", "spec.yaml", "-o", "out", cwd=tmp_path, RATC_SKIP_BATCH_CHECK="")
    assert done.returncode == 1, done.stderr
    assert "error[R575]: module `0.1` (InstanceNorm2d) cannot normalise a sample" in done.stderr
    assert not (tmp_path / "out").exists()


def test_r203_for_model_output_with_the_built_in_model(tmp_path):
    done = ratc("validate", str(small_spec(tmp_path)), "--set", "model.output=out")
    assert done.returncode == 1
    assert "R203" in done.stderr
