"""The choice between DDP, FSDP2 and ZeRO, on real traces of a small RAT and on a card that facts describe."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from ratc.cli import main
from ratc.fitting.check_batch import SKIP
from ratc.fitting.strategies import sent, sent_bytes
from ratc.memory.zero import Strategy
from ratc.timing.run import Sent, Sizes

SIZES = Sizes(trainable=1000, total=1000)
SPEC = """experiment_name: small
data: {data_dir: data, image_size: 32, channels: 1}
model: {feature_dims: 16, num_blocks: 2, num_heads: 2, iters: 1, sga_kernel_size: 5, stride: 4}
training: {target_batch_size: 512}
"""
FACTS = "gpus_per_node: 4\ngpu: made-up\ngpu_memory_mib: 80000\ncompute_capability: '8.0'\ncpus: 16\n"


@pytest.fixture
def compiled(tmp_path, monkeypatch, capsys):
    """Compile SPEC with a section `parallel`; returns the status, the lock's values and text, and the messages."""

    def run(parallel, training="target_batch_size: 512"):
        monkeypatch.chdir(tmp_path)
        spec = SPEC.replace("target_batch_size: 512", training)
        Path("spec.yaml").write_text(f"{spec}parallel: {{{parallel}}}\n")
        Path("facts.yaml").write_text(FACTS)
        status = main(["compile", "spec.yaml", "--facts", "facts.yaml", "-o", "out"])
        text = Path("out/lock.yaml").read_text() if status == 0 else ""
        return status, yaml.safe_load(text), text, capsys.readouterr().err

    return run


@pytest.mark.slow
def test_auto_strategy_lists_memory_and_traffic_of_each_strategy(compiled):
    status, lock, text, said = compiled("strategy: auto")
    assert status == 0, said
    (why,) = re.findall(r"strategy: \w+  # (.*)", text)
    rows = dict(row.split(" ", 1) for row in why.split("; "))
    assert list(rows) == ["ddp", "fsdp2", "deepspeed"]
    assert all(re.fullmatch(r"(1 )?128 x 1, [\d.]+ [MG]iB, [\d.]+ [KM]iB sent a step", row) for row in rows.values())
    assert lock["parallel"]["strategy"] == "deepspeed"  # it sends the least, in 16 bits
    assert lock["engine"]["deepspeed"] is True


@pytest.mark.slow
@pytest.mark.parametrize(
    ("training", "strategy"),
    [
        ("batch_size: 64, target_batch_size: 512", "deepspeed"),
        ("batch_size: 64, target_batch_size: 512, deepspeed: false", "ddp"),  # FSDP2 gathers for each micro-batch
    ],
)
def test_auto_strategy_compares_a_given_micro_batch_too(training, strategy, compiled):
    status, lock, text, said = compiled("strategy: auto", training)
    assert status == 0, said
    assert lock["parallel"]["strategy"] == strategy
    assert lock["engine"]["deepspeed"] is (strategy == "deepspeed")
    assert (lock["training"]["micro_batch_size"], lock["training"]["gradient_accumulation_steps"]) == (64, 2)
    (why,) = re.findall(r"strategy: \w+  # (.*)", text)
    rows = [row for row in why.split("; ") if "is left out" not in row]
    assert [row.split(" ")[0] for row in rows] == ["ddp", "fsdp2", "deepspeed"][: 3 if strategy == "deepspeed" else 2]
    assert all(re.search(r" (1 )?64 x 2, [\d.]+ [MG]iB, ", row) for row in rows)


#: Six blocks with many weights for their activations.
HEAVY = """from torch import nn
def block():
    return nn.Sequential(*(layer for _ in range(4) for layer in (nn.Conv2d(768, 768, 3, padding=1), nn.GELU())))
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 768, 1), nn.Conv2d(768, 1, 1)
        self.blocks = nn.Sequential(*(block() for _ in range(6)))
    def forward(self, image):
        return self.head(self.blocks(self.stem(image)))
"""


@pytest.mark.slow
def test_fit_describes_the_stage_of_the_plan(tmp_path, monkeypatch, capsys):
    """ZeRO 1 would recompute three blocks, ZeRO 2 none: `compile` takes it, and `fit` describes it."""
    monkeypatch.chdir(tmp_path)
    spec = {
        "experiment_name": "m",
        "data": {"data_dir": "data", "image_size": 64, "channels": 1},
        "model": {"name": "net:Net"},
        "training": {"target_batch_size": 8, "activation_checkpointing": "auto"},
        "parallel": {"strategy": "deepspeed"},
    }
    Path("net.py").write_text(HEAVY)
    Path("spec.yaml").write_text(yaml.safe_dump(spec))
    Path("facts.yaml").write_text(FACTS.replace("80000", "4000"))
    assert main(["compile", "spec.yaml", "--facts", "facts.yaml", "-o", "out"]) == 0
    text = Path("out/lock.yaml").read_text()
    assert "zero_stage: 2  # the lowest stage that needs no further accumulation or recomputation" in text
    lock = yaml.safe_load(text)
    assert (lock["training"]["micro_batch_size"], lock["training"]["activation_checkpointing"]) == (1, False)
    capsys.readouterr()
    asked = ["fit", "spec.yaml", "--facts", "facts.yaml", "--in", "bf16"]
    assert main([*asked, "--plot", "step.svg"]) == 0
    assert "At the peak of a step on made-up, micro-batch 1, predicted:" in capsys.readouterr().out
    assert "micro-batch 1, ZeRO 2" in Path("step.svg").read_text()
    assert main([*asked, "--format", "json"]) == 0
    rows = {row["zero_stage"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert (len(rows[1]["activation_checkpointing"]), rows[1]["accumulation"]) == (3, 1)
    assert (rows[2]["activation_checkpointing"], rows[2]["accumulation"]) == (False, 2)
    assert rows[2]["peak_allocated_bytes"] == lock["memory"]["peak_allocated_bytes"]


@pytest.mark.slow
def test_auto_strategy_recomputes_blocks_for_a_given_micro_batch_with_the_best_one(tmp_path, monkeypatch, capsys):
    """FSDP2 shards the weights of this model, so that it needs the fewest blocks recomputed."""
    monkeypatch.chdir(tmp_path)
    spec = {
        "experiment_name": "m",
        "data": {"data_dir": "data", "image_size": 64},
        "model": {"feature_dims": 1024, "num_blocks": 3, "attention_memory": "fused"},
        "training": {"target_batch_size": 8, "batch_size": 2, "activation_checkpointing": "auto"},
        "parallel": {"strategy": "auto"},
    }
    Path("spec.yaml").write_text(yaml.safe_dump(spec))
    Path("facts.yaml").write_text(FACTS.replace("80000", "4500"))
    status = main(["compile", "spec.yaml", "--facts", "facts.yaml", "-o", "out"])
    assert status == 0, capsys.readouterr().err
    text = Path("out/lock.yaml").read_text()
    assert re.search(
        r"strategy: fsdp2  # (ddp .*; )?fsdp2 2 x 1, [\d.]+ GiB, [\d.]+ GiB sent a step, 1 block recomputed", text
    )
    assert re.search(
        r"activation_checkpointing: \[backbone[.\w]+\]  # 1 of 12 blocks: micro-batch 2 needs 4\.7 GiB", text
    )


@pytest.mark.slow
def test_explain_tells_the_values_of_the_strategy_that_auto_takes(compiled, capsys):
    """In fp32 DDP sends less than ZeRO; without a prediction it would be ZeRO, as several GPUs have it by default."""
    training = "target_batch_size: 512, batch_size: 8, precision: fp32, zero_stage: 2"
    status, lock, _, said = compiled("strategy: auto", training)
    assert status == 0, said
    assert lock["parallel"]["strategy"] == "ddp"
    assert "warning[R307]: `zero_stage` has no effect: the strategy is ddp" in said
    assert main(["explain", "spec.yaml", "engine.deepspeed", "--facts", "facts.yaml"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("engine.deepspeed = false  [worked out]\n  because: the strategy is ddp\n")


@pytest.mark.slow
def test_auto_strategy_says_why_one_is_left_out(compiled):
    status, _, text, said = compiled("strategy: auto, shard: hybrid, offload: true", "target_batch_size: 512")
    assert status == 0, said
    assert "; fsdp2 is left out: there is only one group of shards" in text
    assert "R307" in said
    assert "`offload` has no effect: the strategy is deepspeed" in said
    status, _, text, said = compiled("strategy: auto", "target_batch_size: 512, optimizer: muon, compile: true")
    assert status == 0, said
    assert "fsdp2 is left out: `optimizer: muon` " in text
    assert "deepspeed is left out: the optimizer is muon" in text


@pytest.fixture
def heavy(tmp_path, monkeypatch, capsys):
    """Run a command on a spec of HEAVY on a card of so many MiB; returns the status, and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(SKIP)
    Path("net.py").write_text(HEAVY)

    def run(command, mib, strategy, training=""):
        head = "experiment_name: m\ndata: {data_dir: data, image_size: 64, channels: 1}\nmodel: {name: 'net:Net'}\n"
        tail = f"training: {{target_batch_size: 8, precision: bf16{training}}}\nparallel: {{strategy: {strategy}}}\n"
        Path("spec.yaml").write_text(head + tail)
        Path("facts.yaml").write_text(FACTS.replace("80000", str(mib)))
        status = main([*command, "spec.yaml", "--facts", "facts.yaml"])
        return status, "".join(capsys.readouterr())

    return run


@pytest.mark.slow(every=True)
@pytest.mark.parametrize(
    ("code", "given"),
    [("R317", ""), ("R318", ", batch_size: 1"), ("R318", ", batch_size: 2, activation_checkpointing: auto")],
)
def test_if_no_strategy_fits_the_need_is_that_of_the_leanest(heavy, code, given):
    """On a card of that size the same spec compiles."""
    status, said = heavy(["compile", "-o", "out"], 2500, "auto", given)
    assert (status, f"error[{code}]" in said) == (1, True), said
    assert "note: that is with `strategy: fsdp2`, which needs the least" in said
    need = float(re.search(r"needs (?:a card of )?([\d.]+) GiB", said).group(1))
    # The need is told to a tenth, and the card's fixed parts grow with its size.
    status, said = heavy(["compile", "-o", "out"], round(1024 * (need + 0.06) * 1.01), "auto", given)
    assert status == 0, said
    assert "strategy: fsdp2  # " in Path("out/lock.yaml").read_text()
    said = heavy(["fit"], 1500, "auto", given)[1]
    assert re.search("Nothing fits on made-up: micro-batch [12] needs ", said), said
    assert "that is with `strategy: fsdp2`, which needs the least" in said
    assert not re.search(r"-\d+ B", said), said


@pytest.mark.slow
def test_a_suggested_stage_gives_the_micro_batch_that_it_promises(heavy):
    status, said = heavy(["compile", "-o", "out"], 3800, "deepspeed", ", zero_stage: 0, activation_checkpointing: true")
    assert status == 1
    stage, micro = re.search(r"help: would fit with `zero_stage: (1)`: up to micro-batch (\d+), ", said).groups()
    told = heavy(["fit"], 3800, "deepspeed", ", zero_stage: 0, activation_checkpointing: true")[1]
    assert "The strategy of the spec does not fit on made-up: micro-batch 1 needs " in told
    training = f", zero_stage: {stage}, activation_checkpointing: true"
    status, said = heavy(["compile", "-o", "out"], 3800, "deepspeed", training)
    assert status == 0, said
    assert yaml.safe_load(Path("out/lock.yaml").read_text())["training"]["micro_batch_size"] == int(micro)


@pytest.mark.slow
def test_a_strategy_that_needs_recomputation_is_not_said_to_be_impossible(heavy):
    training = ", batch_size: 1, activation_checkpointing: auto"
    assert heavy(["compile", "-o", "out"], 3900, "auto", training)[0] == 0
    assert "; deepspeed does not fit without recomputation" in Path("out/lock.yaml").read_text()
    status, said = heavy(["compile", "-o", "out"], 3900, "deepspeed", training)
    assert status == 0, said


def test_a_mesh_that_is_impossible_is_refused_with_auto_too(compiled):
    status, _, _, said = compiled("strategy: auto, shard: hybrid, shard_size: 3")
    assert status == 1
    assert "error[R364]: groups of 3 processes (`shard_size`) cannot be formed of 4 processes" in said


@pytest.mark.slow
def test_auto_strategy_without_one_that_fits_is_the_usual_one(compiled, monkeypatch):
    too_large = "batch_size: 131072, target_batch_size: 524288"
    status, lock, text, said = compiled("strategy: auto", too_large)
    assert status == 0, said
    assert lock["parallel"]["strategy"] == "deepspeed"
    assert re.search(
        r"strategy: deepspeed  # none is predicted to fit, or nothing is predicted: the same as without the key", text
    )
    monkeypatch.delenv(SKIP)
    status, _, _, said = compiled("strategy: auto", too_large)
    assert status == 1
    assert "error[R318]: micro-batch 131072 does not fit" in said


CLUSTER = """name: ours
scheduler: slurm
node_types: {{node: {{gpus_per_node: 4, gpu: a100-40, cpus: 16{links}}}}}
partitions: {{gpus: {{nodes: {{node: 2}}}}}}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("links", "strategy", "sent"),
    [
        ("", "ddp", r"[\d.]+ [KM]iB sent a step"),
        # Groups within a node send more bytes in all, and fewer over the slower network.
        (", gpu_link_gb_s: 300, network_gb_s: 3", "fsdp2", r"[\d.]+ [KM]iB sent a step in [\d.]+ ms"),
    ],
)
def test_auto_strategy_counts_bytes_by_the_links_that_carry_them(links, strategy, sent, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    training = SPEC.replace("target_batch_size: 512", "target_batch_size: 512, deepspeed: false")
    asked = "resources: {nodes: 2, cluster: ours}\nparallel: {strategy: auto, shard: hybrid}\n"
    Path("spec.yaml").write_text(training + asked)
    Path("clusters").mkdir()
    Path("clusters/ours.yaml").write_text(CLUSTER.format(links=links))
    status = main(["compile", "spec.yaml", "--target", "slurm", "-o", "out"])
    assert status == 0, capsys.readouterr().err
    (chosen, why), *_ = re.findall(r"strategy: (\w+)  # (.*)", Path("out/lock.yaml").read_text())
    assert chosen == strategy
    *rows, left_out = why.split("; ")
    assert [row.split(" ")[0] for row in rows] == ["ddp", "fsdp2"]
    assert all(re.search(f", {sent}$", row) for row in rows), why
    assert left_out == "deepspeed is left out: `deepspeed` is false"


@pytest.mark.slow(every=True)
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        # What one command predicts for a side is not that of the other, though all but what is left open is the same.
        ("strategy: auto", "strategy: ddp", "parallel.strategy: deepspeed → ddp"),
        ("strategy: deepspeed}, training: {zero_stage: 2", "strategy: deepspeed", "engine.zero_stage: 2 → 1"),
        ("strategy: ddp}, training: {batch_size: 8", "strategy: ddp", "training.micro_batch_size: 8 → 128"),
    ],
)
def test_each_side_of_a_diff_has_a_prediction_of_its_own(old, new, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, changed in (("old.yaml", old), ("new.yaml", new)):
        spec = yaml.safe_load(SPEC)
        for section, keys in yaml.safe_load(f"{{parallel: {{{changed}}}}}").items():
            spec[section] = {**spec.get(section, {}), **keys}
        Path(name).write_text(yaml.safe_dump(spec))
    Path("facts.yaml").write_text(FACTS)
    assert main(["diff", "old.yaml", "new.yaml", "--facts", "facts.yaml"]) == 1
    assert said in capsys.readouterr().out


@pytest.mark.slow
def test_lock_lists_the_fsdp2_units_found_in_the_trace(compiled):
    status, lock, text, said = compiled("strategy: fsdp2")
    assert status == 0, said
    wrap = lock["fsdp2"]["wrap"]
    assert wrap
    assert re.search(rf"wrap: \[.*\]  # 2 x {wrap[0]} of up to [\d.]+ [KM]iB", text)
    assert ",".join(wrap) in Path("out/accelerate.yaml").read_text()
    assert "FSDP2's units and shards, which were never measured" in text


@pytest.mark.slow
def test_wrap_names_that_match_no_module_are_refused(compiled):
    status, _, _, said = compiled("strategy: fsdp2, wrap: [MultiRes_RoSE_Blok]")
    assert status == 1
    assert (
        "error[R366]: `wrap` names classes of no module inside the model, or of lists only: MultiRes_RoSE_Blok" in said
    )
    assert "help: did you mean `MultiRes_RoSE_Block`?" in said


@pytest.mark.parametrize(
    ("strategy", "elements"),
    [
        (Strategy("torch", 4), 2 * 4 * 3 / 4),
        (Strategy("fsdp2", 4, shards=4), (2 * 4 + 4) * 3 / 4 * 2),
        (Strategy("fsdp2", 4, shard="grads", shards=4), (4 + 4) * 3 / 4 * 2),
        (Strategy("fsdp2", 4, shards=4, gathered="bf16"), (2 * 2 + 4) * 3 / 4 * 2),
        # Within groups of 2, and half of the gradients between the two groups.
        (Strategy("fsdp2", 4, shard="hybrid", shards=2), ((2 * 4 + 4) / 2 + 2 * 4 / 2 / 2) * 2),
    ],
)
def test_sent_bytes_of_each_strategy_match_the_count(strategy, elements):
    """Two micro-batches: only DDP waits with its gradients for the last one."""
    assert sent_bytes(strategy, SIZES, 2) == pytest.approx(1000 * elements)


def test_bytes_of_a_step_are_counted_for_the_links_that_carry_them():
    """Of 1,000 weights, on two nodes of two: groups of a node send nothing to the other but their sums."""
    hybrid = Strategy("fsdp2", 4, shard="hybrid", shards=2)
    found = sent(hybrid, SIZES, 1, nodes=2)
    assert found.within == pytest.approx(1000 * (2 * 4 + 4) / 2)
    assert found.between == pytest.approx(2 * 1000 * 2 * 4 / 2 / 2), "a ring for each of a node's two processes"
    assert sent(hybrid, SIZES, 1, nodes=1) == Sent(within=sent_bytes(hybrid, SIZES, 1))
    # Groups of all four, and DDP: each ring crosses to the other node once.
    for strategy in (Strategy("fsdp2", 4, shards=4), Strategy("torch", 4)):
        assert sent(strategy, SIZES, 1, nodes=2) == Sent(between=sent_bytes(strategy, SIZES, 1))


@pytest.mark.parametrize(("shards", "crossing"), [(3, 2), (12, 2), (16, 1)])
def test_groups_of_shards_over_several_nodes_use_their_network(shards, crossing):
    """On six nodes of eight: a group of 16 begins with a node; of those of 3 and 12 two may cross at a node."""
    strategy = Strategy("fsdp2", 48, shard="hybrid", shards=shards)
    inside = 1000 * (2 * 4 + 4) * (shards - 1) / shards
    outside = 2 * 4 * 1000 / shards * (48 / shards - 1) / (48 / shards)
    found = sent(strategy, SIZES, 1, nodes=6)
    assert found.within == 0
    assert found.between == pytest.approx(crossing * inside + 8 * outside)


@pytest.mark.slow(every=True)
@pytest.mark.parametrize(
    ("mib", "strategy", "given"),
    [
        # With nothing recomputed it needs less than with all blocks recomputed.
        (5300, "deepspeed", ", activation_checkpointing: auto, zero_stage: 0, batch_size: 1"),
        # Two samples without accumulation need less than one with it.
        (4200, "ddp", ", activation_checkpointing: auto"),
    ],
)
def test_a_card_of_the_told_need_is_enough(heavy, mib, strategy, given):
    status, said = heavy(["compile", "-o", "out"], mib, strategy, given)
    assert status == 1, said
    need = float(re.search(r"needs (?:a card of )?([\d.]+) GiB", said).group(1))
    told = heavy(["fit"], mib, strategy, given)[1]
    assert round(float(re.search(r"(?:0|-) +none .*needs ([\d.]+)", told).group(1)), 1) == need, told
    status, said = heavy(["compile", "-o", "out"], round(1024 * (need + 0.05) * 1.01), strategy, given)
    assert status == 0, said


@pytest.mark.slow(every=True)
@pytest.mark.parametrize("given", ["", ", batch_size: 1"])
def test_some_blocks_are_recomputed_where_all_of_them_need_more(heavy, given):
    training = f", activation_checkpointing: auto, allocator: native, zero_stage: 3{given}"
    assert "R31" in heavy(["compile"], 3700, "deepspeed", training.replace("auto", "true"))[1], "all blocks do not fit"
    status, said = heavy(["compile", "-o", "out"], 3700, "deepspeed", training)
    assert status == 0, said
    blocks = yaml.safe_load(Path("out/lock.yaml").read_text())["training"]["activation_checkpointing"]
    assert 0 < len(blocks) < 6
    status, said = heavy(["fit"], 3700, "deepspeed", training)
    assert status == 0, said
    assert f"checkpointing of {len(blocks)} blocks" in said
    assert "Nothing fits" not in said


@pytest.mark.slow
def test_offload_of_fsdp2_is_suggested_and_fits(heavy):
    status, said = heavy(["compile", "-o", "out"], 2500, "fsdp2", ", activation_checkpointing: auto")
    assert status == 1
    assert "help: would fit with `parallel.offload: true`: up to micro-batch " in said
    status, said = heavy(["compile", "-o", "out"], 2500, "fsdp2, offload: true", ", activation_checkpointing: auto")
    assert status == 0, said


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp2, wrap: [Foo]", "auto, wrap: [Conv2d, Foo]"])
def test_fit_and_compile_name_a_wrap_class_that_no_module_has(heavy, strategy):
    for command in (["compile", "-o", "out"], ["fit"]):
        status, said = heavy(command, 3400, strategy, ", activation_checkpointing: auto")
        assert (status, said.count("error[R366]")) == (1, 1), said
        assert "R374" not in said


@pytest.mark.slow
def test_fit_of_a_range_is_about_the_fewest_nodes(heavy):
    """Two nodes would fit, and one does not."""
    more = "fsdp2}\nresources: {nodes: {min: 1, max: 2}, gpus_per_node: 4"
    for command in (["compile", "--target", "slurm", "-o", "out"], ["fit", "--target", "slurm"]):
        status, said = heavy(command, 2750, more)
        assert status == 1, said
        needs = re.findall(r"micro-batch 1 needs ([\d.]+) GiB", said)
        assert [round(float(need), 1) for need in needs] == [3.0], said
    assert "on 4 GPUs, on 1 node, the fewest of the range." in said
    status, said = heavy(["fit", "--target", "slurm"], 2750, more.replace("{min: 1, max: 2}", "2"))
    assert status == 0, said


@pytest.mark.slow
def test_fit_on_another_card_is_under_the_strategy_of_the_plan(heavy):
    """None fits on the spec's own card, of which the named one says nothing."""
    assert "error[R317]" in heavy(["compile", "-o", "out"], 2300, "auto")[1]
    status, said = heavy(["fit", "--card", "h100"], 2300, "auto")
    assert status == 0, said
    assert re.findall(r"^h100 .* bf16 +(\S)", said, re.MULTILINE) == ["0", "1", "2", "3"]


@pytest.mark.slow
def test_offload_of_the_optimizer_is_suggested_for_a_given_micro_batch_and_fits(heavy):
    training = ", batch_size: 1, activation_checkpointing: auto"
    status, said = heavy(["compile", "-o", "out"], 3400, "deepspeed", training)
    assert status == 1
    assert "help: would fit with `zero_stage: 3` with `offload_optimizer: true`: " in said
    training += ", zero_stage: 3, offload_optimizer: true"
    assert heavy(["compile", "-o", "out"], 3400, "deepspeed", training)[0] == 0
