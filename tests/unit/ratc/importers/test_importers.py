"""`ratc import`: golden folders of files from other tools, and rules that hold for each of their lines.

A folder of `tests/imports` holds the files, `args.txt`, and what is expected: `expected.yaml`, the spec, and
`expected.txt`, the messages. `python -m tests.unit.ratc.importers.test_importers` writes both again: read them.
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


def run_import(folder: Path) -> tuple[int, str, str]:
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
def test_import_writes_the_expected_spec_and_messages(folder, tmp_path):
    status, out, err = run_import(folder)
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


def test_at_least_12_import_cases_exist():
    assert len(folders()) >= 12


READERS = {"acc.yaml": accelerate.read, "ds.json": deepspeed.read, "unified.yaml": unified.read}
FILES = [
    path for folder in folders() for path in folder.iterdir() if path.name in READERS and "error" not in folder.name
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_value_of_a_file_is_imported_or_reported_as_left(path):
    document, _ = parse(path.name, path.read_bytes().replace(b"\t", b" "))
    items = READERS[path.name](document)
    assert sorted(item.source for item in items) == sorted(".".join(names) for names, _ in keys.leaves(document.root))
    text, _ = specification.write(merge.merge(items), [path.name])
    for item in items:
        assert f"{path.name}:{item.span.line}" in text, item


@pytest.mark.parametrize("path", sorted(IMPORTS.glob("*/run.*")), ids=lambda path: path.parent.name)
def test_every_line_of_a_script_is_imported_or_reported_as_left(path):
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


EMITTED = sorted(path.parent.parent.name for path in CASES.glob("*/expected/deepspeed.json"))


def test_at_least_3_golden_cases_have_emitted_files():
    assert len(EMITTED) >= 3


@pytest.mark.parametrize("case", EMITTED)
def test_emitted_files_import_to_the_same_values(case, tmp_path, capsys):
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


def test_windows_line_endings_are_stripped_from_values():
    items = batch.read("slurm", "run.sbatch", "#!/bin/sh\r\n#SBATCH -N 2\r\n#SBATCH -p gpu\r\nhostname\r\n")
    assert [(item.path, item.value) for item in items if isinstance(item, Carried)] == [
        ("resources.nodes", 2),
        ("resources.partition", "gpu"),
    ]


def test_file_written_by_accelerate_is_imported(tmp_path):
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


def test_secrets_are_not_imported():
    for folder in folders():
        _, out, err = run_import(folder)
        assert "hf_aaaa" not in out + err


@pytest.mark.parametrize(
    "name",
    ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "PET_NNODES", "FSDP_VERSION", "MASTER_PORT", "WORLD_SIZE", "RANK"],
)
@pytest.mark.parametrize(("head", "option"), [("#SBATCH", "--time=1:00:00"), ("#BSUB", "-W 1:00")])
def test_variables_that_override_the_lock_are_not_imported(head, option, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("job.sh").write_text(f"#!/bin/bash\n{head} {option}\nexport {name}=4\nexport MINE=4\npython train.py\n")
    assert main(["import", "job.sh", "-o", "spec.yaml"]) == 0
    assert yaml.safe_load(Path("spec.yaml").read_text())["environment"]["variables"] == {"MINE": "4"}
    said = capsys.readouterr()
    assert f"export {name}=4" in said.out + said.err


def test_existing_spec_is_replaced_only_with_force(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("acc.yaml").write_text("num_processes: 2\n")
    Path("spec.yaml").write_text("mine\n")
    assert main(["import", "acc.yaml", "-o", "spec.yaml"]) == 1
    assert Path("spec.yaml").read_text() == "mine\n"
    assert "error[R403]" in capsys.readouterr().err
    assert main(["import", "acc.yaml", "-o", "spec.yaml", "--force"]) == 0
    assert "num_gpus: 2" in Path("spec.yaml").read_text()


@pytest.mark.parametrize("data", [b"", b"\x00\xff\x00", b"a: [\n", b"- 1\n", b"x" * (1 << 21)], ids=range(5))
def test_malformed_file_is_refused(data, tmp_path, capsys):
    path = tmp_path / "acc.yaml"
    path.write_bytes(data)
    assert main(["import", str(path)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert re.search(r"error\[R00\d\]", said.err)


if __name__ == "__main__":
    os.environ["NO_COLOR"] = "1"
    for place in folders():
        status, out, err = run_import(place)
        (place / "expected.txt").write_text(err)
        if status == 0:
            (place / "expected.yaml").write_text(out)
