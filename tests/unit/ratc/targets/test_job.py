"""What jobs ask for: in the site's units, on nodes that are told apart, the same however an option was written."""

from pathlib import Path

import pytest

from ratc import compiler
from ratc.cli import main
from ratc.plan import Values
from ratc.scheduler.dialect import Answer
from ratc.scheduler.refusal import refusal

SPEC = "experiment_name: demo\ndata: {{data_dir: data}}\ntraining: {{batch_size: 2}}\nresources: {{{}}}\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
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
def test_what_an_option_gave_is_checked_clean(here, monkeypatch, capsys, target, options, variable):
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
def test_lsf_counts_what_is_reserved_and_what_is_limited_in_units_of_their_own(here, units, reserved, limit):
    write('cluster: ./c.yaml, num_gpus: 1, memory: 2GB, walltime: "1:00:00"', LSF.format(units))
    assert main(["compile", "spec.yaml", "--target", "lsf", "-o", "out"]) == 0
    script = Path("out/job.lsf").read_text()
    assert f'#BSUB -R "rusage[mem={reserved}] span[hosts=1]"\n' in script
    assert f"#BSUB -M {limit}\n" in script


@pytest.mark.parametrize(
    ("asked", "slurm", "lsf"), [("1kB", "1M", "1MB"), ("0.0001K", "1M", "1MB"), ("2049K", "3M", "3MB")]
)
def test_less_than_a_megabyte_does_not_ask_for_all_of_a_node(here, asked, slurm, lsf):
    """`--mem=0` is all of a node's memory, and no `--mem` what the site says."""
    facts = LSF.format("limit_unit: MB").replace("explicit_units: false", "explicit_units: true")
    write(f'cluster: ./c.yaml, num_gpus: 1, memory: {asked}, walltime: "1:00:00"', facts)
    assert main(["compile", "spec.yaml", "--target", "lsf", "-o", "out"]) == 0
    assert f"mem={lsf}" in Path("out/job.lsf").read_text()
    write(f'gpu: a100-80, num_gpus: 1, cpus: 4, memory: {asked}, walltime: "1:00:00"')
    assert main(["compile", "spec.yaml", "--target", "slurm", "-o", "out"]) == 0
    assert f"--mem={slurm}\n" in Path("out/job.sbatch").read_text()


def test_lsf_gets_one_resource_requirement(here):
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


def test_a_typed_request_never_lands_on_untyped_gpus(here, capsys):
    cluster = KINDS.format(4, ", gpu: a100-80, gpu_type: a100", 8, ", gpu: v100-32")
    write('cluster: ./c.yaml, gpu: a100-80, num_gpus: 4, walltime: "1:00:00"', cluster)
    assert main(["compile", "spec.yaml", "--target", "slurm", "-o", "out"]) == 0, capsys.readouterr().err


def test_an_untyped_request_could_land_anywhere(here, capsys):
    cluster = KINDS.format(4, ", gpu: a100-80, gpu_type: a100", 8, ", gpu: v100-32")
    write('cluster: ./c.yaml, gpu: v100-32, num_gpus: 4, walltime: "1:00:00"', cluster)
    assert main(["compile", "spec.yaml", "--target", "slurm", "-o", "out"]) == 1
    assert "R325" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "taken"), [("", "small"), (", cpus: 64", "big"), (", memory: 300GB", "big"), (", nodes: 3", "small")]
)
@pytest.mark.parametrize("gpus", [0, 4])
def test_a_job_without_gpus_takes_the_smallest_nodes_that_do(here, capsys, asked, taken, gpus):
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
def test_the_headline_of_a_refusal_is_the_reason(said, reason):
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
def test_a_study_keeps_whole_what_the_spec_has_whole(here, base, entry, values):
    args = "" if base is None else f", args: {{width: {base}}}"
    text = SPEC.format("num_gpus: 0, cpus: 4") + f"model: {{name: 'own:Net'{args}}}\n"
    text += f"tuning: {{trials: 12, search: random, backend: array, search_space: {{model.args.width: {entry}}}}}\n"
    found = study_of(text)
    drawn = [dict(point.nodes)["model.args.width"].value for point in found.points]
    assert set(drawn) == values
    assert all(type(value) is int for value in drawn)


def test_a_study_of_a_fraction_stays_one_of_fractions(here):
    text = SPEC.format("num_gpus: 0, cpus: 4") + "model: {name: 'own:Net', args: {width: 2.0}}\n"
    text += "tuning: {trials: 8, search: random, backend: array, search_space: {model.args.width: [2, 4]}}\n"
    assert any(dict(point.nodes)["model.args.width"].value not in (2, 4) for point in study_of(text).points)


def study_of(text: str):
    document, found = compiler.layered(compiler.Inputs(compiler.File("spec.yaml", text.encode())))
    assert document is not None, found
    study, found = compiler.study(document)
    assert study is not None, found
    return study
