"""Cards and machines: spellings, sizes, and the values read from the driver."""

from types import SimpleNamespace

import pytest
import yaml

from ratc import compiler, layers, resources
from ratc.cli import main
from ratc.facts import MIB, Card, Machine, card_names, describe_card, find_card
from ratc.facts.cards import resolve_card
from ratc.probe import local
from ratc.probe.local_facts import text as facts_text
from ratc.units import memory_bytes
from ratc.yaml.parse import parse

GIB = 2**30


@pytest.mark.parametrize(
    ("spelling", "card"),
    [
        ("a100-80", "a100-80"),
        ("A100-80GB", "a100-80"),
        ("a100_80", "a100-80"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("h100", "h100"),
        ("H100-80GB", "h100"),
        ("v100-16", "v100-16"),
        ("V100 32GB", "v100-32"),
        ("rtx4090", "rtx4090"),
        ("RTX 4090", "rtx4090"),
        ("b200", "b200"),
        ("NVIDIA GB200", "gb200"),
        ("NVIDIA B300 SXM6 AC", "b300"),
        ("NVIDIA GB300", "gb300"),
        ("NVIDIA GH200 480GB", "gh200-96"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "rtxpro6000"),
        ("rtx_pro_6000_blackwell", "rtxpro6000"),
        ("AMD Instinct MI355X", "mi355x"),
        ("mi325x", "mi325x"),
        ("T4", "t4"),
        ("MI300X", "mi300x"),
    ],
)
def test_usual_spellings_find_the_card(spelling, card):
    found = find_card(spelling)
    assert isinstance(found, Card)
    assert found.id == card


@pytest.mark.parametrize("spelling", ["v100", "A100", "p100", "NVIDIA A100"])
def test_ambiguous_spelling_gives_all_matching_cards(spelling):
    assert len(find_card(spelling)) >= 2


@pytest.mark.parametrize(
    ("spelling", "identifier", "gib"),
    [
        ("h100-3g.40gb", "h100-3g.40gb", 39.5),
        ("a100_3g.20gb", "a100-40-3g.20gb", 19.5),  # an A100 of 80 GB has none of that profile
        ("nvidia_h100_80gb_hbm3_1g.10gb+me", "h100-1g.10gb", 9.75),
        ("NVIDIA A100-SXM4-80GB MIG 7g.80gb", "a100-80-7g.80gb", 79),
        ("NVIDIA H200 MIG 1g.18gb", "h200-1g.18gb", 16),
    ],
)
def test_mig_slice_is_a_card_with_its_share_of_the_whole(spelling, identifier, gib):
    found, whole = find_card(spelling), find_card(identifier.rpartition("-")[0])
    assert (found.id, found.memory_bytes, found.is_slice) == (identifier, gib * GIB, True)
    assert found.compute_capability == whole.compute_capability
    assert dict(found.peaks.operations)["fp32"] <= dict(whole.peaks.operations)["fp32"]
    assert find_card(found.id) == found


def test_every_slice_is_smaller_than_its_card():
    for name, of_card in yaml.safe_load(resources.read("facts", "slices.yaml")).items():
        whole = find_card(name)
        assert of_card["source"]
        for profile in of_card["profiles"]:
            found = find_card(f"{name}-{profile}")
            # NVIDIA names a profile by the memory, in GB, that the card's own share of it comes near to.
            assert 0.85 < found.memory_bytes / 1e9 / int(profile.partition(".")[2].removesuffix("gb")) < 1.1, found.id
            assert found.memory_bytes <= whole.memory_bytes
            assert found.peaks.bandwidth <= whole.peaks.bandwidth
            assert dict(found.peaks.operations)["fp32"] <= dict(whole.peaks.operations)["fp32"]


@pytest.mark.parametrize("spelling", ["a100_1c.3g.20gb", "1c.3g.20gb", "3g.20gb", "h100-1g.5gb", "mi300x-1g.5gb"])
def test_unknown_mig_slice_is_refused_with_the_facts_to_give(spelling):
    card, [finding] = resolve_card(spelling, None)
    assert (card, finding.code) == (None, "R301")
    assert "gpu_memory_mib" in finding.helps[-1]
    assert "MIG" in finding.notes[0]
    assert "a100-40-" in finding.helps[0]


def test_slice_of_a_slice_is_unknown():
    assert find_card("h100-1g.10gb-1g.10gb") == ()
    assert find_card("-".join(["1g.5gb"] * 3000)) == ()


def test_slice_of_several_possible_cards_is_ambiguous():
    assert find_card("a100-1g.10gb") == ("a100-40-1g.10gb", "a100-80-1g.10gb")


def test_a_node_has_one_slice_of_a_card_for_a_process():
    plan, found = resolve(None, resources__gpu="h100-1g.10gb", resources__cpus=8)
    assert plan.values["parallel.world_size"].value == 1, found
    plan, found = resolve(None, resources__gpu="h100-1g.10gb", resources__num_gpus=2, resources__cpus=8)
    assert plan is None
    assert [one.code for one in found] == ["R303"]


def test_unknown_card_is_refused_with_the_facts_to_give():
    [finding] = resolve_card("my-card", None)[1]
    assert "gpu_memory_mib" in finding.helps[-1]
    assert not finding.notes


def test_no_spelling_names_two_cards():
    """PyYAML takes the last of two equal keys without a word; ratc's own reader refuses them."""
    document, found = parse("cards.yaml", resources.read("facts", "cards.yaml"))
    assert (document is not None, found) == (True, ())
    tree = document.root.data()
    spellings = [text for name, card in tree["cards"].items() for text in {name, *card["aliases"]}]
    assert len(spellings) == len(set(spellings))
    assert not set(spellings) & set(tree["ambiguous"])


def test_catalogue_agrees_with_the_compute_capability_of_each_card():
    for name in card_names():
        card = find_card(name)
        assert 10 * GIB < card.memory_bytes < 300 * GIB
        if card.compute_capability:
            implied = describe_card(card.name, card.memory_bytes, card.compute_capability)
            assert (card.bf16, card.fp16, card.tf32, card.fp8) == (
                implied.bf16,
                implied.fp16,
                implied.tf32,
                implied.fp8,
            ), name


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("128GB", 128 * GIB),
        ("128G", 128 * GIB),
        (128, 128 * GIB),
        ("1.5T", 1536 * GIB),
        ("512 MiB", GIB // 2),
        ("64", 64 * GIB),
    ],
)
def test_memory_size_text_is_parsed_to_bytes(text, size):
    assert memory_bytes(text) == size


def fake_driver(monkeypatch, cards):
    """NVML as it answers for these (name, MiB, capability) cards; the calls are NVML's own."""
    import pynvml

    answers = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: len(cards),
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda handle: cards[handle][0],
        "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}abc",
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=cards[handle][1] * MIB),
        "nvmlDeviceGetCudaComputeCapability": lambda handle: cards[handle][2],
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)


A100, L40S = ("NVIDIA A100-SXM4-80GB", 81920, (8, 0)), ("NVIDIA L40S", 46068, (8, 9))


@pytest.mark.parametrize(
    ("cards", "visible", "count", "card"),
    [
        ([A100] * 4, None, 4, "a100-80"),
        ([A100] * 4, "0,2", 2, "a100-80"),
        ([A100] * 4, "GPU-1abc", 1, "a100-80"),
        ([A100] * 4, "", 0, None),
        ([A100] * 4, "0,-1,1", 1, "a100-80"),
        ([A100] * 4, "7", 0, None),
        ([A100, L40S], None, 1, "a100-80"),
        ([A100, L40S], "1", 1, "l40s"),
        ([("NVIDIA Future 1", 65536, (13, 0))], None, 1, "nvidia-future-1"),
    ],
)
def test_machine_counts_the_gpus_that_cuda_visible_devices_allows(monkeypatch, cards, visible, count, card):
    fake_driver(monkeypatch, cards)
    found = local.machine({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    assert found.gpus == count
    assert (found.card.id if found.card else None) == card
    assert found.cpus >= 1
    assert found.memory_bytes > GIB


@pytest.mark.parametrize(
    ("code", "source"),
    [
        ("NVML_ERROR_LIBRARY_NOT_FOUND", "this machine"),
        ("NVML_ERROR_DRIVER_NOT_LOADED", "this machine"),
        ("NVML_ERROR_LIB_RM_VERSION_MISMATCH", "this machine, whose NVIDIA driver fails: RM has detected an NVML/RM"),
    ],
)
def test_failing_driver_is_distinguished_from_a_missing_driver(monkeypatch, code, source):
    import pynvml

    def fail():
        raise pynvml.NVMLError(getattr(pynvml, code))

    fake_driver(monkeypatch, [A100])
    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    found = local.machine({})
    assert (found.gpus, found.card) == (0, None)
    assert found.source.startswith(source)
    assert ("fails" in found.source) == ("fails" in source)


#: As NVML names the slices of `nvidia-smi mig -cgi 9,19 -C` on an A100 of 40 GB, with what each has.
SLICES = {("NVIDIA A100-SXM4-40GB MIG 3g.20gb", 19968): "MIG-3", ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 4864): "MIG-1"}


def sliced_driver(monkeypatch, slices):
    """One A100 in MIG mode with these slices, beside a whole one: NVML counts and answers as it does there."""
    import pynvml

    fake_driver(monkeypatch, [("NVIDIA A100-SXM4-40GB", 40960, (8, 0))] * 2)
    handles = list(slices)
    whole = {name: getattr(pynvml, name) for name in ("nvmlDeviceGetName", "nvmlDeviceGetUUID")}
    memory, capability = pynvml.nvmlDeviceGetMemoryInfo, pynvml.nvmlDeviceGetCudaComputeCapability

    def by_number(_, number):
        if number >= len(handles):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return handles[number]

    def of_whole(handle):
        if handle in slices:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return capability(handle)

    answers = {
        "nvmlDeviceGetMigMode": lambda handle: [int(handle == 0), int(handle == 0)],
        "nvmlDeviceGetMaxMigDeviceCount": lambda handle: 7,
        "nvmlDeviceGetMigDeviceHandleByIndex": by_number,
        "nvmlDeviceGetName": lambda handle: handle[0] if handle in slices else whole["nvmlDeviceGetName"](handle),
        "nvmlDeviceGetUUID": lambda handle: slices.get(handle) or whole["nvmlDeviceGetUUID"](handle),
        "nvmlDeviceGetMemoryInfo": lambda one: SimpleNamespace(total=one[1] * MIB) if one in slices else memory(one),
        "nvmlDeviceGetCudaComputeCapability": of_whole,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)


@pytest.mark.parametrize(
    ("visible", "count", "card", "mib"),
    [
        (None, 1, "a100-40-3g.20gb", 19968),
        ("MIG-1", 1, "a100-40-1g.5gb", 4864),
        ("MIG-3,MIG-1", 1, "a100-40-3g.20gb", 19968),
        ("GPU-1abc", 1, "a100-40", 40960),
        ("GPU-0abc", 0, None, None),  # it is cut up: no device of its own
    ],
)
def test_mig_slice_is_read_as_a_card_with_its_own_memory(monkeypatch, visible, count, card, mib):
    sliced_driver(monkeypatch, SLICES)
    found = local.machine({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    assert (found.gpus, found.card and found.card.id) == (count, card)
    if found.card:
        assert (found.card.memory_bytes, found.card.compute_capability) == (mib * MIB, "8.0")
        written = facts_text(found)
        values, problems = compiler.read_facts(compiler.File("facts.yaml", written.encode()))
        assert not problems, written
        settings, _ = compiler.analyse(
            compiler.Inputs(compiler.File("x.yaml", b"experiment_name: x\ndata: {data_dir: d}\n"))
        )
        plan, _ = compiler.plan(settings, values, None)
        assert plan.values["hardware.memory_bytes"].value == mib * MIB


def test_card_in_mig_mode_without_slices_counts_no_gpu(monkeypatch):
    sliced_driver(monkeypatch, {})
    assert local.machine({}).gpus == 1
    assert local.machine({"CUDA_VISIBLE_DEVICES": "GPU-0abc"}).gpus == 0


def test_memory_of_a_card_is_read_from_the_driver(monkeypatch):
    fake_driver(monkeypatch, [A100])
    assert local.machine({}).card.memory_bytes == 81920 * MIB


def test_machine_without_a_driver_has_no_gpus(monkeypatch):
    import pynvml

    def absent():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    assert local.machine({}).gpus == 0


def resolve(machine, **keys):
    text = "experiment_name: x\ndata: {data_dir: d}\n"
    overrides = [layers.from_assignment(f"{path.replace('__', '.')}={value}") for path, value in keys.items()]
    settings, found = compiler.analyse(compiler.Inputs(compiler.File("x.yaml", text.encode()), (), overrides))
    assert settings, found
    return compiler.plan(settings, None, machine)


def test_plan_uses_the_hardware_of_this_machine():
    card = find_card("a100-80")
    plan, _ = resolve(Machine(4, card, 64, 512 * GIB, "this machine"))
    assert plan.values["parallel.world_size"].value == 4
    assert plan.values["hardware.card"].value == "a100-80"
    assert plan.values["training.precision"].value == "bf16"
    assert plan.values["engine.zero_stage"].value == 2
    assert plan.values["data.num_workers"].value == 8
    assert plan.values["parallel.backend"].value == "nccl"


def test_more_gpus_than_the_machine_has_is_an_error():
    plan, found = resolve(Machine(1, find_card("l4"), 8, GIB, "this machine"), resources__num_gpus=2)
    assert plan is None
    assert [item.code for item in found] == ["R309"]
    assert not any("--target" in text for text in found[0].helps)
    machine = Machine(1, find_card("l4"), 8, GIB, "this machine")
    _, [error] = resolve(machine, resources__num_gpus=2, resources__cluster="ours")
    assert error.helps[0] == "use the cluster's nodes: `--target slurm` or `--target lsf`"


def test_spec_with_card_and_cpus_needs_no_machine():
    plan, _ = resolve(None, resources__gpu="h100", resources__num_gpus=8, resources__cpus=64)
    assert plan.values["parallel.world_size"].value == 8
    assert plan.values["hardware.memory_bytes"].value == find_card("h100").memory_bytes


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ("gpus_per_node: 4\ncpus: 8\n", "R311"),
        ("gpus_per_node: 4\ngpu: a100-90\ncpus: 8\n", "R301"),
        ("gpus_per_node: 4\ngpu: l4\ncpus: 8\n", "R311"),
        ("gpus_per_node: 1\ngpu: h100\ncpus: 8\n", "R303"),
        ("gpus_per_node: 2\ngpu: h100\ngpu_memory_mib: 16000\ncpus: 8\n", "R311"),
        ("gpus_per_node: 2\ngpu: h100\ncompute_capability: '7.0'\ncpus: 8\n", "R311"),
        ("gpus_per_node: 2\ngpu: own\ngpu_memory_mib: 16000\ncompute_capability: '99.0'\ncpus: 8\n", "R106"),
        ("gpus_per_node: 2\ngpu: own\ngpu_memory_mib: 16000\ncompute_capability: '0.1'\ncpus: 8\n", "R106"),
        ("gpus: 4\n", "R101"),
        ("[]\n", "R004"),
    ],
)
def test_invalid_or_insufficient_facts_file_is_refused(tmp_path, capsys, facts, code):
    (tmp_path / "spec.yaml").write_text(
        "experiment_name: x\ndata: {data_dir: d}\nresources: {gpu: h100, num_gpus: 2}\n"
    )
    (tmp_path / "facts.yaml").write_text(facts)
    assert main(["compile", str(tmp_path / "spec.yaml"), "--facts", str(tmp_path / "facts.yaml")]) == 1
    assert f"error[{code}]" in capsys.readouterr().err


def test_facts_file_may_describe_a_card_outside_the_catalogue(tmp_path, capsys):
    (tmp_path / "spec.yaml").write_text("experiment_name: x\ndata: {data_dir: d}\n")
    facts = "gpus_per_node: 1\ngpu: future\ngpu_memory_mib: 65536\ncompute_capability: '7.5'\ncpus: 8\n"
    (tmp_path / "facts.yaml").write_text(facts)
    arguments = ["explain", str(tmp_path / "spec.yaml"), "training.precision", "--facts", str(tmp_path / "facts.yaml")]
    assert main(arguments) == 0
    assert "training.precision = fp16" in capsys.readouterr().out


def test_full_attention_is_not_chosen_if_its_maps_exceed_the_card():
    plan, _ = resolve(None, resources__gpu="a100-80", resources__cpus=8, training__batch_size=8)
    assert plan.values["model.attention_memory"].value == "fused"
    assert (
        plan.values["model.attention_memory"].reason
        == "one block's maps alone would take 1386.8 GiB of 79.1 GiB with 8 samples"
    )
    for other in ({"resources__gpu": "v100-32"}, {"resources__gpu": "mi300x"}, {"resources__num_gpus": 0}):
        plan, _ = resolve(None, **other, resources__cpus=8, training__batch_size=8)
        assert plan.values["model.attention_memory"].value == "chunked"
    small = {"data__image_size": 64, "model__num_blocks": 2, "model__num_heads": 2}
    plan, _ = resolve(None, resources__gpu="a100-80", resources__cpus=8, training__batch_size=8, **small)
    assert plan.values["model.attention_memory"].value == "full"
    asked = {"model__attention_memory": "full"}
    plan, _ = resolve(None, resources__gpu="a100-80", resources__cpus=8, training__batch_size=8, **asked)
    assert plan.values["model.attention_memory"].value == "full"
