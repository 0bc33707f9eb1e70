"""Probes: recorded output of schedulers becomes cluster facts that compile; missing values become questions.

`slurm-small` and `slurm-mixed` were recorded from a running Slurm 22.05, the first of `tests/cluster/slurm/up`, the
second of a controller with many kinds of nodes. `lsf` was written from IBM's documentation of LSF 10.1's commands.
"""

import os
import shutil
import stat
from pathlib import Path

import pytest

from ratc import compiler, facts
from ratc.cli import main
from ratc.compiler import File
from ratc.diagnostics import has_errors
from ratc.probe import lsf, slurm
from ratc.probe.inventory import Gpus, Host, Inventory, Queue, recognise, text

RECORDED = Path(__file__).parent / "recorded"


def recorded(folder):
    """The answers of a folder, by name."""
    return {path.stem: path.read_text() for path in (RECORDED / folder).glob("*.txt")}


def probed(folder):
    """The facts that a recording leads to, checked; and their text."""
    reader = lsf if folder == "lsf" else slurm
    written = text(reader.inventory(recorded(folder)), "ratc probe")
    cluster, found = compiler.read_cluster(File("ours.yaml", written.encode()))
    assert cluster is not None, (found, written)
    return cluster, written


def keys(part):
    """The keys that a probe wrote for a part, without those it left open."""
    return {
        key: value.value for key, value in part.values.items() if value.origin != "default" and value.value is not None
    }


def questions(cluster):
    return [question.value for question in cluster.questions]


def test_nodes_of_another_processor_are_a_type_of_their_own():
    answers = recorded("slurm-small")
    first, rest = answers["nodes"].split("\n", 1)
    changed = {**answers, "nodes": first.replace("Arch=x86_64", "Arch=aarch64") + "\n" + rest}
    changed["config"] = changed["config"].replace("topology/none", "topology/block")
    written = text(slurm.inventory(changed), "ratc probe")
    cluster, _ = compiler.read_cluster(File("ours.yaml", written.encode()))
    found = {name: part.values["cpu_architecture"].value for name, part in cluster.node_types.items()}
    assert sorted(found.values()) == ["aarch64", "x86_64"], found
    assert any("`block_nodes`" in question for question in questions(cluster))
    for processor in slurm.PROCESSORS:
        of_card = written.replace("gpu: h100", "gpu: null").replace("aarch64", processor)
        assert compiler.read_cluster(File("ours.yaml", of_card.encode()))[0] is not None


def test_recorded_answers_of_one_slurm_become_its_cluster_facts():
    cluster, _ = probed("slurm-small")
    assert cluster.name == "ratc"
    assert cluster.values["version"].value == "22.05.8"
    assert cluster.values["gpu_request"].value == "gpus-per-node"
    assert cluster.values["max_array_size"].value == 1000
    assert keys(cluster.node_types["h100"]) == {
        "gpus_per_node": 4,
        "gpu": "h100",
        "gpu_type": "h100",
        "cpus": 16,
        "memory": "250GB",
        "cpu_architecture": "x86_64",
    }
    limits = {"default_walltime": "00:30:00", "max_walltime": "1-00:00:00"}
    assert keys(cluster.partitions["gpu"]) == {"nodes": {"h100": 4}, "default": True, **limits}
    assert keys(cluster.partitions["scavenge"]) == {
        "nodes": {"h100": 4},
        **limits,
        "preemption": "requeue",
        "grace_seconds": 60,
    }
    assert keys(cluster.partitions["small"]) == {
        "nodes": {"h100": 2},
        "max_nodes": 1,
        "max_cpus_per_node": 8,
        "max_memory_per_node": "32000MB",
        "default_walltime": "00:05:00",
        "max_walltime": "00:10:00",
    }
    # Its nodes are switched off, and Slurm does not show such nodes.
    assert "large" not in cluster.partitions
    assert any(
        question.startswith("partitions.large: the scheduler shows none of its nodes")
        for question in questions(cluster)
    )


def test_nodes_with_different_hardware_become_node_types():
    cluster, _ = probed("slurm-mixed")
    assert cluster.values["max_array_size"].value == 4000
    types = {name: keys(part) for name, part in cluster.node_types.items()}
    assert types["h100"]["constraint"] == "hopper", "a feature of these nodes only"
    assert types["h100"]["memory"] == "1021000MB", "the least of its nodes, without what Slurm keeps for itself"
    assert cluster.partitions["gpu"].nodes["h100"].value == 5
    assert (types["a100-x4"]["gpus_per_node"], types["a100-x4"]["cpus"]) == (4, 128)
    assert (types["a100-x2"]["gpus_per_node"], types["a100-x2"]["cpus"]) == (2, 64)
    assert types["cpu-250g"]["gpus_per_node"] == types["cpu-2000g"]["gpus_per_node"] == 0
    assert "max_walltime" not in keys(cluster.partitions["cpu"])
    assert keys(cluster.partitions["idle"])["preemption"] == "suspend"
    assert "admin" not in cluster.partitions, "only root may use it"
    asked = questions(cluster)
    assert "node_types.a100-x4.gpu: which card is `a100`: a100-40 or a100-80?" in asked
    assert "node_types.a100-x4.constraint: which constraint keeps jobs from `a100-x2`, in the same partition?" in asked
    assert "node_types.gpu.gpu: which card is it? the scheduler gives no type for its GPUs" in asked


def test_documented_lsf_answers_become_cluster_facts():
    cluster, _ = probed("lsf")
    assert cluster.name == "everest"
    assert cluster.values["version"].value == "10.1.0.14"
    assert {name: keys(part) for name, part in cluster.node_types.items()} == {
        "v100-32": {
            "gpus_per_node": 4,
            "gpu": "v100-32",
            "gpu_type": "TeslaV100_SXM2_32GB",
            "cpus": 40,
            "memory": "523776MB",
        },
        "h100": {
            "gpus_per_node": 2,
            "gpu": "h100",
            "gpu_type": "NVIDIAH10080GBHBM3",
            "cpus": 96,
            "memory": "2048GB",
        },
        "cpu": {"gpus_per_node": 0, "cpus": 64, "memory": "261734MB"},
    }
    assert {name: keys(part) for name, part in cluster.partitions.items()} == {
        "gpu": {"nodes": {"v100-32": 2, "h100": 2}, "default_walltime": "04:00", "max_walltime": "24:00"},
        "idle": {"nodes": {"v100-32": 1, "h100": 2}, "max_walltime": "12:00", "preemption": "suspend"},
        "normal": {"nodes": {"cpu": 2}, "default": True, "max_walltime": "48:00"},
    }
    assert [question.split(":")[0] for question in questions(cluster)] == [
        "lsf.limit_unit",
        "lsf.memory_limit",
        "lsf.rusage",
    ]


@pytest.mark.parametrize("folder", ["slurm-small", "slurm-mixed", "lsf"])
def test_probed_facts_compile_after_their_questions_are_answered(folder):
    cluster, _ = probed(folder)
    cards = {"a100-x4": "a100-80", "a100-x2": "a100-80", "gpu": "v100-16"}
    for partition in cluster.partitions.values():
        for name in partition.nodes:
            node_type = cluster.node_types[name]
            gpus = node_type.values["gpus_per_node"].value
            lines = f"node_type: {name}, {cluster.word}: {partition.name}, num_gpus: {gpus}, walltime: '00:10'"
            lines += "" if node_type.values["gpu"].value or not gpus else f", gpu: {cards.get(name, 'h100')}"
            spec = f"experiment_name: x\ndata: {{data_dir: d}}\ntraining: {{batch_size: 1}}\nresources: {{{lines}}}\n"
            settings, _ = compiler.analyse(compiler.Inputs(File("spec.yaml", spec.encode())))
            plan, found = compiler.plan(settings, None, None, None, cluster, cluster.scheduler)
            if plan is None:
                # Only what a question says stands in the way: untyped GPUs beside others.
                assert [item.code for item in found if item.code != "R329"] == ["R325"], found
                assert any(item.startswith(f"node_types.{name}.constraint") for item in questions(cluster))
            else:
                assert plan.values["parallel.world_size"].value == max(gpus, 1)


def test_question_is_a_comment_on_the_line_of_its_answer():
    cluster, written = probed("slurm-mixed")
    lines = written.splitlines()
    assert lines[0].startswith("# Written by `ratc probe`")
    assert "    gpu: null  # ? which card is `a100`: a100-40 or a100-80?" in lines
    assert written.count("  # ?") >= 6
    assert len(set(questions(cluster))) == len(questions(cluster))


@pytest.mark.parametrize(
    ("kind", "memory", "card"),
    [
        ("h100", None, "h100"),
        ("nvidia_a100-sxm4-80gb", None, "a100-80"),
        ("TeslaV100_SXM2_32GB", None, "v100-32"),
        ("TeslaV100_PCIE_", 32460, "v100-32"),
        ("NVIDIAA100_SXM4_80GB", None, "a100-80"),
        ("UnknownNVIDIAA100_PCIE_40GB", None, "a100-40"),
        ("NVIDIAH10080GBHBM3", None, "h100"),
        ("a100", 81920, "a100-80"),
        ("NVIDIAL40S", None, "l40s"),
        ("a100", None, ("a100-40", "a100-80")),
        ("1g.10gb", None, ()),
        ("a100_3g.40gb", None, "a100-80-3g.40gb"),
        ("nvidia_h100_80gb_hbm3_1g.10gb", None, "h100-1g.10gb"),
        ("a100_1g.10gb", None, ("a100-40-1g.10gb", "a100-80-1g.10gb")),
        ("tpu", None, ()),
    ],
)
def test_gpu_type_of_a_scheduler_is_recognised_as_a_card(kind, memory, card):
    assert recognise(kind, memory) == card


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("gpu:h100:4(S:0-1)", (Gpus("h100", 4),)),
        ("gpu:8", (Gpus(None, 8),)),
        ("gpu:a100:2,gpu:v100:2(S:1),shard:8", (Gpus("a100", 2), Gpus("v100", 2))),
        ("gpu:2080ti:4", (Gpus("2080ti", 4),)),
        ("gpu:0", ()),
        ("craynetwork:4", ()),
        ("(null)", ()),
    ],
)
def test_gres_of_a_slurm_node_gives_its_gpus(gres, gpus):
    line = f"NodeName=n CPUTot=8 RealMemory=1000 Gres={gres} Partitions=p OS=Linux 6.1 #1 SMP State=IDLE"
    answers = {"nodes": line, "partitions": "PartitionName=p MaxTime=UNLIMITED TotalNodes=1"}
    assert slurm.inventory(answers).hosts[0].gpus == gpus


@pytest.mark.parametrize(
    "garbage", ["", "\n\n", "slurm_load_node error: Unable to contact", "NodeName=\n", "a=b c\0d=\n"]
)
def test_garbage_answers_give_no_inventory(garbage):
    assert slurm.inventory({"nodes": garbage, "partitions": garbage, "config": garbage}) is None
    assert lsf.inventory({"lsid": garbage, "hosts": garbage, "machines": garbage, "queues": garbage}) is None


def test_cluster_name_with_special_characters_is_made_valid():
    inventory = Inventory("our (best) cluster", "slurm", [Host("n", 8, None)], [Queue("p", ("n",), {})])
    cluster, found = compiler.read_cluster(File("c.yaml", text(inventory, "ratc probe slurm").encode()))
    assert cluster is not None, found
    assert cluster.name == "our-best-cluster"
    assert questions(cluster) == ["node_types.cpu.memory: how much memory can a job ask for on such a node?"]


def commands(folder, monkeypatch, **scripts):
    """Put commands of these scripts first on PATH: they stand for a scheduler that is not there."""
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(stat.S_IRWXU)


def replay_commands(folder, monkeypatch, recording):
    """Commands that answer as recorded."""
    reader = lsf if recording == "lsf" else slurm
    scripts = {}
    for name, command in reader.COMMANDS.items():
        path = RECORDED / recording / f"{name}.txt"
        line = f'[ "$*" = "{" ".join(command[1:])}" ] && exec cat "{path}"'
        scripts[command[0]] = scripts.get(command[0], "") + line + "\n"
    commands(folder, monkeypatch, **{name: script + "exit 1" for name, script in scripts.items()})


@pytest.mark.parametrize(("what", "recording"), [("slurm", "slurm-mixed"), ("lsf", "lsf")])
def test_probe_writes_a_facts_file_that_a_spec_can_name(what, recording, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    replay_commands(tmp_path / "bin", monkeypatch, recording)
    arguments = ["probe", what, "-o", "clusters/ours.yaml", "--name", "ours"]
    assert main(arguments) == 0
    said = capsys.readouterr().err
    assert said.startswith("written: clusters/ours.yaml")
    assert "see `questions` in it" in said
    Path("spec.yaml").write_text(
        "experiment_name: x\ndata: {data_dir: d}\ntraining: {batch_size: 8}\n"
        "resources: {cluster: ours, gpu: h100, nodes: 2, gpus_per_node: 2, walltime: '1:00'}\n"
    )
    key = "partition=gpu" if what == "slurm" else "queue=gpu"
    assert main(["compile", "spec.yaml", "--target", what, "--set", f"resources.{key}"]) == 0
    assert "warning[R329]" in capsys.readouterr().err, "the network between the nodes is not known"
    before = Path("clusters/ours.yaml").read_text()
    assert main(arguments) == 1
    assert "`clusters/ours.yaml` exists already" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0
    assert Path("clusters/ours.yaml").read_text() == before


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            "echo 'Unable to contact slurm controller' >&2; exit 1",
            ["`scontrol show node -a -o` gave 1", "Unable to contact"],
        ),
        ("sleep 100", ["`scontrol show node -a -o` did not end", "no answer within 0.5 s"]),
        ("echo surprise", ["show no nodes with their queues"]),
        ("printf '\\377\\000\\033[2J'", ["show no nodes with their queues"]),
        ("kill -9 $$", ["gave -9"]),
    ],
)
def test_unusable_answer_of_a_scheduler_is_reported(script, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands(tmp_path, monkeypatch, scontrol=script)
    patience = "0.5" if script.startswith("sleep") else "60"
    assert main(["probe", "slurm", "-o", "c.yaml", "--timeout", patience]) == 1
    said = capsys.readouterr().err
    for word in words:
        assert word in said
    assert not Path("c.yaml").exists()


def test_failed_optional_command_leaves_its_values_open(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = RECORDED / "slurm-small"
    script = f'case "$2" in node) cat {folder}/nodes.txt;; partition) cat {folder}/partitions.txt;; *) exit 1;; esac'
    commands(tmp_path, monkeypatch, scontrol=script)
    assert main(["probe", "slurm", "-o", "c.yaml"]) == 0
    assert "`scontrol show config` gave 1; the values from it are left open" in capsys.readouterr().err
    assert "gpu_request: `--gpus-per-node`" in Path("c.yaml").read_text()


def test_missing_scheduler_commands_are_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    for what, command in (("slurm", "scontrol"), ("lsf", "lsid")):
        assert main(["probe", what, "-o", "c.yaml"]) == 1
        assert f"there is no `{command}` on PATH" in capsys.readouterr().err


def test_unwritable_output_file_is_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    assert main(["probe", "local", "-o", "file/c.yaml"]) == 1
    assert "cannot write `file/c.yaml`" in capsys.readouterr().err


def test_probe_local_writes_facts_that_compile(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["probe", "local", "-o", "facts.yaml"]) == 0
    values, found = compiler.read_facts(File("facts.yaml", Path("facts.yaml").read_bytes()))
    assert values is not None, found
    assert values["cpus"].value == len(os.sched_getaffinity(0))
    Path("spec.yaml").write_text("experiment_name: x\ndata: {data_dir: d}\ntraining: {batch_size: 1}\n")
    assert main(["compile", "spec.yaml", "--facts", "facts.yaml"]) == 0


@pytest.mark.parametrize("mib", [81920, 81000])
def test_facts_of_a_machine_with_gpus_compile(mib):
    from ratc.probe.local_facts import text as facts_text

    card = facts.describe_card("NVIDIA H100 80GB HBM3", mib << 20, "9.0")
    written = facts_text(facts.Machine(8, card, 96, 1 << 40, "this machine"))
    values, found = compiler.read_facts(File("facts.yaml", written.encode()))
    spec = b"experiment_name: x\ndata: {data_dir: d}\ntraining: {batch_size: 1}\n"
    settings, _ = compiler.analyse(compiler.Inputs(File("spec.yaml", spec)))
    plan, found = compiler.plan(settings, values, None)
    assert not has_errors(found)
    assert plan.values["hardware.memory_bytes"].value == mib << 20


@pytest.mark.skipif(shutil.which("scontrol") is None, reason="there is no Slurm on this machine")
def test_probe_of_a_running_slurm_gives_valid_facts(tmp_path, monkeypatch, capsys):
    from ratc.scheduler.client import ask

    if ask(("scontrol", "ping"), 10).status != 0:
        pytest.skip("no Slurm answers")
    monkeypatch.chdir(tmp_path)
    assert main(["probe", "slurm", "-o", "c.yaml"]) == 0, capsys.readouterr().err
    cluster, found = compiler.read_cluster(File("c.yaml", Path("c.yaml").read_bytes()))
    assert cluster is not None, found
    assert cluster.scheduler == "slurm"


NODES = "NodeName=n1 CPUTot=64 RealMemory=256000 State=IDLE Partitions=a,b Gres=gpu:h100:8 AvailableFeatures=(null)\n"
PARTITION = (
    "PartitionName=a Default=YES AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL MaxTime=1-00:00:00 State=UP {}\n"
)


def asked_of(partition="", config=""):
    answers = {"nodes": NODES, "partitions": PARTITION.format(partition), "config": f"ClusterName = c\n{config}"}
    written = text(slurm.inventory(answers), "ratc probe")
    cluster, found = compiler.read_cluster(File("ours.yaml", written.encode()))
    assert cluster is not None, (found, written)
    return keys(cluster.partitions["a"]), questions(cluster)


@pytest.mark.parametrize(
    ("partition", "config", "key", "value"),
    [
        ("MaxMemPerCPU=4000 MaxMemPerNode=UNLIMITED", "", "max_memory_per_cpu", "4000MB"),
        ("", "MaxMemPerCPU = 2000\n", "max_memory_per_cpu", "2000MB"),
        ("MaxMemPerNode=UNLIMITED", "MaxMemPerNode = 64000\n", "max_memory_per_node", "64000MB"),
        ("MaxMemPerCPU=4000", "MaxMemPerNode = 64000\n", "max_memory_per_node", None),
        ("MaxMemPerNode=9000", "MaxMemPerNode = 64000\n", "max_memory_per_node", "9000MB"),
        ("MinNodes=2", "", "min_nodes", 2),
        ("MinNodes=1", "", "min_nodes", None),
        ("AllowAccounts=x,y", "", "accounts", ["x", "y"]),
        ("AllowQos=long", "", "qos", ["long"]),
    ],
)
def test_site_limits_become_facts(partition, config, key, value):
    assert asked_of(partition, config)[0].get(key) == value


@pytest.mark.parametrize(
    ("partition", "config", "asked"),
    [
        ("State=DRAIN", "", "state"),
        ("State=DOWN", "", "state"),
        ("AllowGroups=admins", "", "groups"),
        ("DenyAccounts=guests", "", "accounts"),
        ("DenyQos=low", "", "qos"),
        ("", "AccountingStorageEnforce = associations,limits,qos\n", "account_required"),
        ("DefMemPerCPU=2000", "", "max_memory_per_cpu"),
    ],
)
def test_unknown_site_limits_become_questions(partition, config, asked):
    found = asked_of(partition, config)[1]
    assert any(question.startswith(f"partitions.a.{asked}: ") for question in found), found


@pytest.mark.parametrize(
    ("old", "new", "asked"),
    [
        ("Open:Active", "Closed:Active", "state: the queue is Closed:Active"),
        ("Open:Active", "Open:Inact", "state: the queue is Open:Inact"),
        ("USERS: all", "USERS: ml_group/ ann", "groups: those who may submit are ml_group, ann"),
        ("USERS: all", "USERS: all ~bob", "groups: those who may submit are all, ~bob"),
        (" 240.0 min of gv01", " 240.0 min of gv01\n\n MEMLIMIT\n 4 G", None),
        (
            " 1440.0 min of gv01",
            " 1440.0 min of gv01\n\n MEMLIMIT\n 8 G",
            "max_memory_per_node: its MEMLIMIT is 8 G",
        ),
    ],
)
def test_rules_of_a_queue_that_lsf_may_enforce_become_questions(old, new, asked):
    answers = recorded("lsf")
    written = text(lsf.inventory({**answers, "queues": answers["queues"].replace(old, new, 1)}), "ratc probe")
    cluster, found = compiler.read_cluster(File("ours.yaml", written.encode()))
    assert cluster is not None, found
    found = [question for question in questions(cluster) if question.startswith("queues.gpu.")]
    assert len(found) == bool(asked)
    assert all(question.startswith(f"queues.gpu.{asked}") for question in found)
    assert not any(question.startswith("queues.gpu.") for question in questions(probed("lsf")[0]))


def test_cluster_without_limits_has_no_limit_facts_and_questions():
    config = "AccountingStorageEnforce = none\nMaxMemPerNode = UNLIMITED\nSelectType = select/cons_tres\n"
    limits, found = asked_of("DenyAccounts=NONE", config)
    assert set(limits) == {"nodes", "default", "max_walltime"}
    assert not [question for question in found if question.startswith("partitions.")]
