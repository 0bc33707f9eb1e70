"""Resource requests of jobs: units of the site, node types and GPU types, and options from any source."""

from pathlib import Path

import pytest

from ratc import compiler
from ratc.cli import main
from ratc.plan import Values
from ratc.scheduler.dialect import Answer
from ratc.scheduler.refusal import refusal

SPEC = "experiment_name: demo\ndata: {{data_dir: data}}\ntraining: {{batch_size: 2}}\nresources: {{{}}}\n"


@pytest.fixture
def working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    return tmp_path


def write(resources: str, cluster: str = "") -> None:
    Path("spec.yaml").write_text(SPEC.format(resources))
    Path("c.yaml").write_text(cluster)


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("slurm", ["--partition", "gpu", "--walltime", "10:00"]),
        ("slurm", ["--account", "a-b", "--qos", "long", "--memory", "32", "--num-gpus", "4", "--nodes", "2"]),
        ("lsf", ["--queue", "gpu", "--walltime", "1-02:03", "--account", "p"]),
        ("local", ["--batch-size", "4", "--epochs", "3", "--num-gpus", "0"]),
    ],
)
@pytest.mark.parametrize("variable", [False, True])
def test_check_finds_nothing_after_compile_with_options_or_variables(
    working_folder, monkeypatch, capsys, target, options, variable
):
    write("num_gpus: 8, gpu: h100")
    words = list(options)
    if variable:
        for name, value in zip(options[::2], options[1::2], strict=True):
            monkeypatch.setenv(f"RAT_{name[2:].upper().replace('-', '_')}", value)
        words = []
    assert main(["compile", "spec.yaml", "--target", target, *words]) == 0
    for name in options[::2]:
        monkeypatch.delenv(f"RAT_{name[2:].upper().replace('-', '_')}", raising=False)
    capsys.readouterr()
    assert main(["check", "."]) == 0, capsys.readouterr().err


LSF = """\
name: c
scheduler: lsf
lsf: {{explicit_units: false, rusage: host, {}}}
node_types: {{n: {{gpus_per_node: 4, gpu: h100, cpus: 32, memory: 512GB}}}}
queues: {{q: {{nodes: {{n: 2}}}}}}
"""


@pytest.mark.parametrize(
    ("units", "reserved", "limit"),
    [
        ("limit_unit: KB", 2048, 2 << 20),
        ("limit_unit: MB", 2048, 2048),
        ("limit_unit: GB", 2, 2),
        ("limit_unit: KB, rusage_unit: KB", 2 << 20, 2 << 20),
        ("limit_unit: GB, rusage_unit: MB", 2048, 2),
    ],
)
def test_lsf_reserve_and_limit_use_the_units_of_the_site(working_folder, units, reserved, limit):
    write('cluster: ./c.yaml, num_gpus: 1, memory: 2GB, walltime: "1:00:00"', LSF.format(units))
    assert main(["compile", "spec.yaml", "--target", "lsf", "-o", "out"]) == 0
    script = Path("out/job.lsf").read_text()
    assert f'#BSUB -R "rusage[mem={reserved}] span[hosts=1]"\n' in script
    assert f"#BSUB -M {limit}\n" in script


@pytest.mark.parametrize(
    ("asked", "slurm", "lsf"), [("1kB", "1M", "1MB"), ("0.0001K", "1M", "1MB"), ("2049K", "3M", "3MB")]
)
def test_memory_request_below_1_mb_is_not_written_as_0(working_folder, asked, slurm, lsf):
    """`--mem=0` is all of a node's memory, and no `--mem` what the site says."""
    facts = LSF.format("limit_unit: MB").replace("explicit_units: false", "explicit_units: true")
    write(f'cluster: ./c.yaml, num_gpus: 1, memory: {asked}, walltime: "1:00:00"', facts)
    assert main(["compile", "spec.yaml", "--target", "lsf", "-o", "out"]) == 0
    assert f"mem={lsf}" in Path("out/job.lsf").read_text()
    write(f'gpu: a100-80, num_gpus: 1, cpus: 4, memory: {asked}, walltime: "1:00:00"')
    assert main(["compile", "spec.yaml", "--target", "slurm", "-o", "out"]) == 0
    assert f"--mem={slurm}\n" in Path("out/job.sbatch").read_text()


def test_lsf_script_has_one_resource_requirement(working_folder):
    """At some sites the last of several `-R` counts."""
    facts = LSF.format("limit_unit: MB").replace("cpus: 32", "cpus: 32, constraint: 'type==X86_64'")
    write('cluster: ./c.yaml, num_gpus: 8, nodes: 2, cpus: 8, memory: 64GB, walltime: "1:00:00"', facts)
    assert main(["compile", "spec.yaml", "--target", "lsf", "-o", "out"]) == 0
    lines = [line for line in Path("out/job.lsf").read_text().splitlines() if line.startswith("#BSUB -R")]
    assert lines == ['#BSUB -R "select[type==X86_64] rusage[mem=65536] span[ptile=8]"']


KINDS = """\
name: c
scheduler: slurm
node_types:
  big: {{gpus_per_node: {}, cpus: 128, memory: 512GB{}}}
  small: {{gpus_per_node: {}, cpus: 32, memory: 128GB{}}}
partitions: {{p: {{nodes: {{big: 2, small: 4}}, max_walltime: "24:00:00"}}}}
"""


def test_request_for_a_typed_gpu_compiles_beside_untyped_gpus(working_folder, capsys):
    cluster = KINDS.format(4, ", gpu: a100-80, gpu_type: a100", 8, ", gpu: v100-32")
    write('cluster: ./c.yaml, gpu: a100-80, num_gpus: 4, walltime: "1:00:00"', cluster)
    assert main(["compile", "spec.yaml", "--target", "slurm", "-o", "out"]) == 0, capsys.readouterr().err


def test_request_for_an_untyped_gpu_beside_typed_ones_is_refused(working_folder, capsys):
    cluster = KINDS.format(4, ", gpu: a100-80, gpu_type: a100", 8, ", gpu: v100-32")
    write('cluster: ./c.yaml, gpu: v100-32, num_gpus: 4, walltime: "1:00:00"', cluster)
    assert main(["compile", "spec.yaml", "--target", "slurm", "-o", "out"]) == 1
    assert "R325" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "taken"), [("", "small"), (", cpus: 64", "big"), (", memory: 300GB", "big"), (", nodes: 3", "small")]
)
@pytest.mark.parametrize("gpus", [0, 4])
def test_cpu_job_uses_the_smallest_sufficient_node_type(working_folder, capsys, asked, taken, gpus):
    kind = ", gpu: a100-80, gpu_type: a100" if gpus else ""
    write(f'cluster: ./c.yaml, num_gpus: 0, walltime: "1:00:00"{asked}', KINDS.format(gpus, kind, gpus, kind))
    assert main(["compile", "spec.yaml", "--target", "slurm", "-o", "out"]) == 0, capsys.readouterr().err
    assert f"node_type: {taken}" in Path("out/lock.yaml").read_text()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "sbatch: error: Use -A x\nsbatch: error: Batch job submission failed: Unspecified error",
            "Use -A",
        ),
        ("sbatch: error: Batch job submission failed: Invalid account", "Invalid account"),
        ("sbatch: error: Batch job submission failed: Unspecified error", "Unspecified error"),
        ("Ask for a project\nRequest aborted by esub. Job not submitted.", "Ask for a project"),
    ],
)
def test_message_of_a_refusal_is_the_scheduler_s_reason(said, reason):
    found = refusal(Answer("sbatch", 1, "", said), Values({}), submitted=True)
    assert found.message.startswith(f"the scheduler refused the job: {reason}")
    assert all(reason not in note for note in found.notes)


@pytest.mark.parametrize(
    ("base", "entry", "values"),
    [
        ("8", "[2, 4]", {2, 4}),
        ("8", "{range: [2, 4]}", {2, 3, 4}),
        ("8", "{choices: [2, 4]}", {2, 4}),
        (None, "[2, 4]", {2, 4}),
    ],
)
def test_study_draws_integers_for_an_integer_argument(working_folder, base, entry, values):
    args = "" if base is None else f", args: {{width: {base}}}"
    text = SPEC.format("num_gpus: 0, cpus: 4") + f"model: {{name: 'own:Net'{args}}}\n"
    text += f"tuning: {{trials: 12, search: random, backend: array, search_space: {{model.args.width: {entry}}}}}\n"
    found = study_of(text)
    drawn = [dict(point.nodes)["model.args.width"].value for point in found.points]
    assert set(drawn) == values
    assert all(type(value) is int for value in drawn)


def test_study_draws_floats_for_a_float_argument(working_folder):
    text = SPEC.format("num_gpus: 0, cpus: 4") + "model: {name: 'own:Net', args: {width: 2.0}}\n"
    text += "tuning: {trials: 8, search: random, backend: array, search_space: {model.args.width: [2, 4]}}\n"
    assert any(dict(point.nodes)["model.args.width"].value not in (2, 4) for point in study_of(text).points)


def study_of(text: str):
    document, found = compiler.layered(compiler.Inputs(compiler.File("spec.yaml", text.encode())))
    assert document is not None, found
    study, found = compiler.study(document)
    assert study is not None, found
    return study
