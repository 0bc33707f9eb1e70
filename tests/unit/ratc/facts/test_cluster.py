"""Cluster facts: searching and reading them, and the partition and node type that a spec selects."""

from pathlib import Path

import pytest

from ratc import compiler, facts
from ratc.cli import main
from ratc.compiler import File
from ratc.diagnostics import Severity, has_errors
from tests.helpers.clusters import WALL, cluster, example, resolve, settings

HEAD = "name: t\nscheduler: slurm\nnode_types: {n: {gpus_per_node: 0, cpus: 4}}\n"
GPUS = (
    "name: t\nscheduler: slurm\nnode_types:\n  a: {gpus_per_node: 4, gpu: h100, cpus: 4}\n"
    "  b: {gpus_per_node: 4, gpu: h200, cpus: 4}\n"
)


def test_plan_takes_its_hardware_from_one_node_type():
    values, found = resolve(["gpu: a100-80", "nodes: 2", "num_gpus: 8", WALL], example("slurm"))
    assert not found
    assert values["gpus_per_node"].value == 4
    assert values["card.id"].value == "a100-80"
    assert values["cpus"].value == 64, "16 for each of 4 GPUs"
    assert values["memory_bytes"].value == 500 << 30
    assert values["cluster.partition"].value == "gpu"
    assert "default partition" in values["cluster.partition"].reason
    assert values["cluster.node_type"].value == "a100"
    assert values["cluster.gpu_type"].value == "a100"
    assert values["cluster.constraint"].value == "a100"
    assert values["cluster.walltime_seconds"].value == 4 * 3600
    assert values["cluster.max_walltime_seconds"].value == 2 * 86400
    assert values["cluster.max_array_size"].value == 1000
    assert values["cluster.modules_init"].origin == "cluster"
    assert values["cluster.requeue"].origin == "default"
    assert values["cluster.modules_init"].span.place.startswith("example-slurm.yaml:")


def test_default_cpus_and_memory_respect_the_limits_of_the_partition():
    text = (
        "name: t\nscheduler: slurm\nnode_types: {n: {gpus_per_node: 4, gpu: h100, cpus: 64, memory: 500GB}}\n"
        "partitions: {p: {nodes: {n: 2}, max_cpus_per_gpu: 8, max_memory_per_node: 100GB}}\n"
    )
    values, _ = resolve(["num_gpus: 2", WALL], cluster(text))
    assert values["cpus"].value == 32
    assert values["memory_bytes"].value == 100 << 30
    values, _ = resolve(["num_gpus: 0", WALL], cluster(text))
    assert values["cpus"].value == 64, "a job without GPUs"


def test_cpu_job_in_a_mixed_partition_uses_the_nodes_without_gpus():
    text = (
        "name: t\nscheduler: slurm\nnode_types:\n  g: {gpus_per_node: 4, gpu: h100, cpus: 64}\n"
        "  c: {gpus_per_node: 0, cpus: 128}\npartitions: {p: {nodes: {g: 2, c: 3}}}\n"
    )
    assert resolve(["num_gpus: 0", WALL], cluster(text))[0]["cluster.node_type"].value == "c"
    assert resolve(["num_gpus: 4", WALL], cluster(text))[0]["cluster.node_type"].value == "g"


@pytest.mark.parametrize(
    ("limits", "message", "seconds"),
    [
        (
            "default_walltime: '00:30:00', max_walltime: '24:00:00'",
            "the default of partition `p` is taken, 30 min",
            1800,
        ),
        ("max_walltime: '24:00:00'", "the longest of partition `p` is taken, 1 day", 86400),
        ("max_nodes: 1", "have no default", None),
    ],
)
def test_missing_walltime_is_taken_from_the_partition_with_a_warning(limits, message, seconds):
    text = f"{HEAD}partitions: {{p: {{nodes: {{n: 1}}, {limits}}}}}\n"
    values, found = resolve([], cluster(text))
    assert [(item.code, item.severity) for item in found] == [("R326", Severity.WARNING)]
    assert message in found[0].message
    assert values["cluster.walltime_seconds"].value == seconds


def test_request_without_cluster_facts_is_unchecked_with_a_warning():
    lines = ["gpu: h100", "num_gpus: 8", "partition: any", WALL]
    values, found = facts.hardware(settings(lines), None, None, None, "slurm")
    assert [(item.code, item.severity) for item in found] == [("R320", Severity.WARNING)]
    assert values["cluster.partition"].value == "any"
    assert values["cluster.launcher"].value == "srun"
    assert values["cluster.ephemeral_ports"].value == [32768, 60999]
    assert values["cluster.gpu_type"].value is None


def test_defaults_without_a_cluster_equal_those_of_the_schema():
    text = "name: t\nscheduler: lsf\nnode_types: {n: {gpus_per_node: 0, cpus: 4}}\nqueues: {q: {nodes: {n: 1}}}\n"
    known, _ = resolve([WALL], cluster(text), "lsf")
    unknown, _ = facts.hardware(settings([WALL]), None, None, None, "lsf")
    own = ("name", "partition", "node_type", "part_nodes")
    assert {key for key in known if key.startswith("cluster.")} == {
        key for key in unknown if key.startswith("cluster.")
    }
    for key in unknown:
        if key.startswith("cluster.") and key.removeprefix("cluster.") not in own:
            assert known[key].value == unknown[key].value, key


def test_facts_file_overrides_the_node_type_of_the_cluster():
    file, found = compiler.read_facts(File("facts.yaml", b"gpus_per_node: 2\ngpu: l4\ncpus: 8\n"))
    values, found = facts.hardware(settings(["num_gpus: 2", WALL]), file, None, example("slurm"), "slurm")
    assert not has_errors(found)
    assert values["card.id"].value == "l4"
    assert values["cluster.partition"].value == "gpu"
    values, found = facts.hardware(settings(["nodes: 17", WALL]), file, None, example("slurm"), "slurm")
    assert [item.code for item in found] == ["R322"]


def test_local_target_ignores_the_cluster_facts():
    values, _ = facts.hardware(settings(["num_gpus: 0", "partition: none"]), None, None, example("slurm"), "local")
    assert not [key for key in values if key.startswith("cluster.")]


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (HEAD + "partitions: {p: {nodes: {m: 1}}}\n", "R325", "nodes of a type `m`, which is not described"),
        (HEAD + "partitions: {p: {nodes: {}}}\n", "R325", "`p` has no nodes"),
        (HEAD, "R325", "the facts name no partitions"),
        (HEAD + "queues: {p: {nodes: {n: 1}}}\n", "R325", "a slurm cluster has no `queues`"),
        (
            HEAD + "partitions: {p: {nodes: {n: 1}, default: true}, q: {nodes: {n: 1}, default: true}}\n",
            "R325",
            "two partitions are the default: `p` and `q`",
        ),
        (
            HEAD + "partitions: {p: {nodes: {n: 1}, default_walltime: '2:00', max_walltime: '1:00'}}\n",
            "R325",
            "the default walltime of `p` is longer than its `max_walltime`, 1:00",
        ),
        (HEAD + "partitions: {p: {nodes: {n: 1}}}\nlauncher: blaunch\n", "R325", "`blaunch` does not start"),
        (HEAD + "partitions: {p: {nodes: {n: 1}}}\nephemeral_ports: [9, 8]\n", "R325", "not a range"),
        ("name: t\nscheduler: slurm\nnode_types: {}\npartitions: {p: {nodes: {}}}\n", "R325", "no node types"),
        (GPUS.replace("h200", "h21") + "partitions: {p: {nodes: {a: 1}}}\n", "R301", "no card `h21`"),
        (HEAD + "partitions: {p: {nodes: {n: 0}}}\n", "R104", "at least 1"),
        (HEAD + "partition: {p: {nodes: {n: 1}}}\n", "R101", "unknown key `partition`"),
        ("- a\n", "R004", "a mapping"),
    ],
)
def test_contradictory_cluster_facts_are_refused(text, code, message):
    read, found = compiler.read_cluster(File("c.yaml", text.encode()))
    assert read is None
    assert [item for item in found if item.code == code and message in item.message], found
    assert all(item.span.source.name == "c.yaml" for item in found)


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        ("gpu_link_gb_s: 1900", "cannot send 1900 GB/s: its memory has 1555"),
        ("network_gb_s: 600", "600 GB/s are more than the ports of a node"),
        ("gpu_link_gb_s: 1.0e-300", "must be at least 0.01"),
        ("network_gb_s: 0", "must be at least 0.01"),
        ("watts_per_gpu: 1.0e-300", "must be at least 1"),
        ("price_per_gpu_hour: 1.0e+300, currency: EUR", "must be at most 1000000000"),
        ("gpu_link_gb_s: 300, network_gb_s: 200", None),
    ],
)
def test_impossible_bandwidths_prices_and_watts_are_refused(rate, message):
    """The A100 of 40 GB reads 1,555 GB/s, and 4 GPUs have at most 4 ports."""
    text = f"name: t\nscheduler: slurm\nnode_types: {{n: {{gpus_per_node: 4, gpu: a100-40, cpus: 4, {rate}}}}}\n"
    read, found = compiler.read_cluster(File("c.yaml", (text + "partitions: {p: {nodes: {n: 1}}}\n").encode()))
    assert (read is None) == bool(message), found
    assert all(message in item.message for item in found)


def test_node_types_that_the_scheduler_cannot_distinguish_are_refused():
    text = GPUS + "partitions: {p: {nodes: {a: 1, b: 1}}}\n"
    values, found = resolve(["gpu: h100", "num_gpus: 4", WALL], cluster(text))
    assert values is None
    assert [item.code for item in found] == ["R325"]
    assert "the scheduler cannot tell `a` nodes from `b` nodes" in found[0].message
    typed = text.replace("gpu: h100,", "gpu: h100, gpu_type: h100,").replace("gpu: h200,", "gpu: h200, gpu_type: h200,")
    assert resolve(["gpu: h100", "num_gpus: 4", WALL], cluster(typed))[0]["cluster.node_type"].value == "a"


def test_open_question_is_repeated_only_if_it_affects_the_job():
    text = HEAD + "partitions: {p: {nodes: {n: 2}}}\nquestions:\n  - 'interface: which network?'\n"
    text += "  - 'partitions.p.max_walltime: how long?'\n  - 'container: which?'\n  - 'scratch: where?'\n"

    def open_questions(read, *lines):
        return [item.message.rpartition("question: ")[2] for item in resolve([*lines, WALL], read)[1]]

    assert open_questions(cluster(text)) == ["partitions.p.max_walltime: how long?"]
    assert open_questions(cluster(text), "nodes: 2") == [
        "interface: which network?",
        "partitions.p.max_walltime: how long?",
    ]
    answered = text.replace("{n: 2}}", "{n: 2}, max_walltime: '24:00'}") + "interface: ib0\n"
    assert open_questions(cluster(answered), "nodes: 2") == []


def test_spec_may_name_the_card_that_the_facts_leave_open():
    text = "name: t\nscheduler: slurm\nnode_types: {n: {gpus_per_node: 4, cpus: 4}}\npartitions: {p: {nodes: {n: 2}}}\n"
    values, found = resolve(["num_gpus: 4", WALL], cluster(text))
    assert values is None
    assert [item.code for item in found] == ["R311"]
    values, _ = resolve(["num_gpus: 4", "gpu: h100", WALL], cluster(text))
    assert values["card.id"].value == "h100"


def write(folder, name, text=HEAD + "partitions: {p: {nodes: {n: 2}, max_walltime: '24:00'}}\n"):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def compile_in(folder, monkeypatch, capsys, *arguments, resources="cluster: ours"):
    monkeypatch.chdir(folder)
    Path("spec.yaml").write_text(
        f"experiment_name: x\ndata: {{data_dir: d}}\nresources: {{{resources}, walltime: '1:00'}}\n"
    )
    return main(["compile", "spec.yaml", "--target", "slurm", *arguments]), capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("ours", "specs/clusters/ours.yaml"),
        ("ours", "clusters/ours.yaml"),
        ("../other/c.yaml", "other/c.yaml"),
        ("c.yml", "specs/c.yml"),
    ],
)
def test_cluster_facts_are_found_by_name_or_by_path(tmp_path, monkeypatch, capsys, name, file):
    (tmp_path / "specs").mkdir()
    write(tmp_path, file)
    status, said = compile_in(tmp_path / "specs", monkeypatch, capsys, resources=f"cluster: {name}")
    assert status == 0, said
    lock = (tmp_path / "specs/compiled/x/slurm/lock.yaml").read_text()
    assert f"{file.removeprefix('specs/') if file.startswith('specs') else '../' + file}: " in lock.replace('"', "")


def test_cluster_path_on_the_command_line_is_relative_to_the_working_folder(tmp_path, monkeypatch, capsys):
    (tmp_path / "specs").mkdir()
    write(tmp_path, "here.yaml")
    (tmp_path / "specs/spec.yaml").write_text(
        "experiment_name: x\ndata: {data_dir: d}\nresources: {walltime: '1:00'}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["compile", "specs/spec.yaml", "--target", "slurm", "--cluster", "./here.yaml"]) == 0
    script = Path("specs/compiled/x/slurm/job.sbatch").read_text()
    assert "resources.cluster=../here.yaml" in script, "compiled again, it is the same file"


def test_missing_cluster_facts_are_reported_with_a_suggestion(tmp_path, monkeypatch, capsys):
    write(tmp_path, "clusters/ours.yaml")
    status, said = compile_in(tmp_path, monkeypatch, capsys, resources="cluster: our")
    assert status == 1
    assert "error[R327]: there are no facts of the cluster `our`" in said
    assert "did you mean `ours`?" in said
    status, said = compile_in(tmp_path, monkeypatch, capsys, resources="cluster: ./x.yaml")
    assert status == 1
    assert "error[R327]: there is no file `x.yaml`" in said
    assert "spec.yaml:3:22" in said


@pytest.mark.parametrize("scheduler", ["slurm", "lsf"])
def test_example_facts_resolve_for_every_partition_and_node_type(scheduler):
    read = example(scheduler)
    for partition in read.partitions.values():
        for name in partition.nodes:
            gpus = read.node_types[name].values["gpus_per_node"].value
            most = partition.values["max_gpus_per_job"].value or gpus
            lines = [
                f"{read.word}: {partition.name}",
                f"node_type: {name}",
                f"num_gpus: {min(gpus, most)}",
                "account: p",
            ]
            values, found = resolve(lines, read, scheduler)
            assert values is not None, found
            assert [item.code for item in found] == ["R326"]


@pytest.mark.parametrize("target", ["slurm", "lsf"])
@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("", "write `cpus: 18` under `resources`: each of 2 processes of a node needs a core, and 8 for loading"),
        ("data: {data_dir: d, num_workers: 3}\n", "2 x (1 + 3 workers) share an unknown number of cores"),
        ("data: {data_dir: d, num_workers: 0}\n", None),
        ("data: {data_dir: d, auto_optimize: false}\n", None),
    ],
)
def test_number_of_cpus_that_no_facts_give_is_a_warning(target, more, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = "experiment_name: x\ntraining: {batch_size: 2}\n" + (more or "data: {data_dir: d}\n")
    asked = "resources: {gpu: h100, num_gpus: 2, walltime: '1:00:00'%s}\n"
    Path("spec.yaml").write_text(text + asked % "")
    assert main(["compile", "spec.yaml", "--target", target, "-o", "job"]) == 0
    found = capsys.readouterr().err
    assert ("R361" in found) == (said is not None)
    assert said is None or said in found
    Path("spec.yaml").write_text(text + asked % ", cpus: 18")
    assert main(["compile", "spec.yaml", "--target", target, "-o", "job"]) == 0
    assert "R361" not in capsys.readouterr().err
