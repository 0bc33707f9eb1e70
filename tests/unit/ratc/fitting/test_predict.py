"""`auto_batch_size` from a spec to the lock: real traces of a small RAT, replayed on cards that facts describe."""

import json
import re
from pathlib import Path

import pytest
import yaml

from ratc.cli import main
from tests.places import CASES

SPEC = """experiment_name: small
data: {data_dir: data, image_size: 32, channels: 1}
model: {feature_dims: 16, num_blocks: 1, num_heads: 2, iters: 1, sga_kernel_size: 5, stride: 4}
training: {target_batch_size: 512}
"""
FACTS = "gpus_per_node: {gpus}\ngpu: made-up\ngpu_memory_mib: {mib}\ncompute_capability: '8.0'\ncpus: 16\n"


@pytest.fixture
def compiled(tmp_path, monkeypatch, capsys):
    """Compile SPEC on a made-up card; returns the status, the lock's values and text, and what was said."""

    def run(mib, more="", gpus=1, spec=SPEC):
        monkeypatch.chdir(tmp_path)
        Path("spec.yaml").write_text(spec + more)
        Path("facts.yaml").write_text(FACTS.format(gpus=gpus, mib=mib))
        status = main(["compile", "spec.yaml", "--facts", "facts.yaml", "-o", "out"])
        text = Path("out/lock.yaml").read_text() if status == 0 else ""
        return status, yaml.safe_load(text), text, capsys.readouterr().err

    return run


@pytest.mark.slow
def test_larger_card_gets_a_larger_micro_batch_with_the_same_global_batch(compiled):
    micro = []
    for mib in (700, 1000, 2000, 80000):
        status, lock, text, said = compiled(mib)
        assert status == 0, said
        training = lock["training"]
        assert training["global_batch_size"] == 512
        assert training["micro_batch_size"] * training["gradient_accumulation_steps"] == 512
        assert re.search(r"micro_batch_size: \d+  # largest divisor of 512 / 1 = 512 that fits made-up", text)
        assert "R305" not in said
        micro.append(training["micro_batch_size"])
    assert micro == sorted(micro)
    assert micro[0] < micro[-1] == 512
    assert lock["model"]["attention_memory"] == "full"


@pytest.mark.slow
def test_cached_prediction_gives_the_same_files_without_a_trace(compiled):
    first, again = compiled(2000), compiled(2000)
    assert again[2] == first[2]
    assert "tracing" not in again[3]
    assert "nothing, all files are up to date" in again[3]


BLOCKS = """from torch import nn
def block():
    return nn.Sequential(*(layer for _ in range(6) for layer in (nn.Conv2d(16, 16, 3, padding=1), nn.GELU())))
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 16, 1), nn.Conv2d(16, 1, 1)
        self.blocks = nn.Sequential(*(block() for _ in range(6)))
    def forward(self, image):
        return self.head(self.blocks(self.stem(image)))
"""


def spec_of_blocks(training):
    """The spec of a model with six equal blocks."""
    spec = re.sub(r"^model: .*$", "model: {name: 'net:Net'}", SPEC, flags=re.M)
    spec = spec.replace("image_size: 32", "image_size: 256")
    return spec.replace("512}", f"{training}, activation_checkpointing: auto}}")


@pytest.mark.slow
def test_if_nothing_fits_the_error_names_the_largest_part_and_suggestions(compiled, tmp_path):
    (tmp_path / "net.py").write_text(BLOCKS)
    spec = spec_of_blocks("512").replace(", activation_checkpointing: auto", "")
    status, _, _, said = compiled(530, "resources: {num_gpus: 1}\n", spec=spec)
    assert status == 1
    assert "error[R317]: nothing fits on made-up: micro-batch 1 needs" in said
    assert "note: largest: " in said
    assert "help: would fit with card" in said


@pytest.mark.slow
def test_fewest_blocks_are_checkpointed_that_let_one_sample_fit(compiled, tmp_path, capsys):
    (tmp_path / "net.py").write_text(BLOCKS)
    spec = spec_of_blocks("1")
    _, lock, text, said = compiled(80000, spec=spec)
    assert lock["training"]["activation_checkpointing"] is False, said
    assert "activation_checkpointing: false  # it fits without" in text
    # Room for what stands beside the allocator (512 MiB and 0.75 %), but only for two thirds of the step.
    card = int((lock["memory"]["peak_reserved_bytes"] / 2**20 * 0.67 / 0.95 + 512) * 1.008)
    status, lock, text, said = compiled(card, spec=spec)
    assert status == 0, said
    assert lock["training"]["activation_checkpointing"] == ["blocks.0", "blocks.1", "blocks.2"]
    reason = r"\]  # 3 of 6 blocks: nothing fits without: micro-batch 1 needs \d\.\d GiB, with it micro-batch 1 takes"
    assert re.search(reason + r" \d\.\d GiB of \d\.\d GiB", text)
    assert main(["fit", "spec.yaml", "--facts", "facts.yaml", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    (row,) = (row for row in rows if row["precision"] == lock["training"]["precision"])
    assert row["activation_checkpointing"] == ["blocks.0", "blocks.1", "blocks.2"]
    assert (row["micro_batch"], row["peak_allocated_bytes"]) == (1, lock["memory"]["peak_allocated_bytes"])
    status, _, _, said = compiled(card, spec=spec.replace("checkpointing: auto", "checkpointing: false"))
    assert status == 1
    assert "would fit with `activation_checkpointing: true`" in said


@pytest.mark.slow
def test_fewest_blocks_are_checkpointed_that_let_a_given_micro_batch_fit(compiled, tmp_path, capsys):
    (tmp_path / "net.py").write_text(BLOCKS)
    spec = spec_of_blocks("32, batch_size: 8")
    taken = {}
    for mib in (3000, 1700, 1000):
        status, lock, text, said = compiled(mib, spec=spec)
        assert status == 0, said
        assert lock["training"]["micro_batch_size"] == 8
        taken[mib] = lock["training"]["activation_checkpointing"], lock["memory"]["peak_allocated_bytes"]
    assert "# 5 of 6 blocks: micro-batch 8 needs 1.9 GiB without, with it 0.9 GiB of 1.0 GiB" in text
    assert "allocator: native  # the default" in text
    names = [f"blocks.{number}" for number in range(6)]
    assert [found for found, _ in taken.values()] == [False, names[:1], names[:5]]
    assert taken[3000][1] > taken[1700][1] > taken[1000][1]
    # Too little even for a step that recomputes all of them.
    status, lock, _, said = compiled(800, spec=spec)
    assert "warning[R375]: `activation_checkpointing: auto` recomputes nothing: micro-batch 8 does not fit" in said
    assert (status, lock["training"]["activation_checkpointing"]) == (0, False)  # the check, R318, is off here
    compiled(1700, spec=spec)
    assert main(["explain", "spec.yaml", "training.activation_checkpointing", "--facts", "facts.yaml"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"^ +[\d.]+ [MG]iB  blocks\.0$", told, flags=re.M), told
    Path("smaller.yaml").write_text(spec.replace("batch_size: 8", "batch_size: 2"))
    main(["diff", "spec.yaml", "smaller.yaml", "--facts", "facts.yaml"])
    assert "└ training.activation_checkpointing: [blocks.0] → false" in capsys.readouterr().out
    main(["fit", "spec.yaml", "--facts", "facts.yaml"])
    assert "Micro-batch 8 is given by the spec, and fits." in capsys.readouterr().out


@pytest.mark.slow
def test_auto_checkpointing_of_an_untraceable_model_is_off_with_a_warning(compiled, tmp_path):
    (tmp_path / "net.py").write_text("def net():\n    raise OSError('no weights')\n")
    spec = spec_of_blocks("32, batch_size: 8").replace("net:Net", "net:net")
    status, lock, _, said = compiled(3000, spec=spec)
    assert status == 0, said
    assert "warning[R374]: `activation_checkpointing: auto` recomputes nothing" in said
    assert "no weights" in said
    assert lock["training"]["activation_checkpointing"] is False


@pytest.mark.slow
def test_deepspeed_uses_the_lowest_stage_without_more_accumulation_and_small_buckets(
    compiled,
):
    status, lock, text, said = compiled(80000, gpus=4)
    assert status == 0, said
    assert lock["engine"]["zero_stage"] == 1
    assert "zero_stage: 1  # the lowest stage that needs no further accumulation" in text
    zero = json.loads(Path("out/deepspeed.json").read_text())["zero_optimization"]
    assert zero["stage"] == 1
    assert zero["reduce_bucket_size"] < 100_000


@pytest.mark.slow
def test_untraceable_model_gets_the_default_micro_batch_with_warnings(compiled, tmp_path):
    (tmp_path / "net.py").write_text("def net():\n    raise OSError('no weights')\n")
    own = re.sub(r"^model: .*$", "model: {name: 'net:net'}", SPEC, flags=re.M)
    status, lock, _, said = compiled(80000, spec=own)
    assert status == 0, said
    assert "warning[R316]" in said
    assert "no weights" in said
    assert "warning[R305]" in said
    assert lock["training"]["micro_batch_size"] == 8


@pytest.mark.slow
def test_model_of_the_product_document_fits_a_card_of_24_gib(compiled):
    document = (CASES / "product-document-cpu/spec.yaml").read_text()
    status, lock, text, said = compiled(24000, spec=document)
    assert status == 0, said
    assert lock["model"]["attention_memory"] == "fused"
    assert lock["model"]["args"]["num_heads"] == 16
    assert "attention_memory: fused  # one block's maps alone would take 173.3 GiB of 23.4 GiB with 1 sample" in text
    assert lock["training"]["global_batch_size"] == 32
    assert said.count("tracing") <= 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mib", "reason"),
    [
        (1000, r"micro-batch \d+ fits with it, \d+ with full attention"),
        (615, r"full attention needs \d\.\d GiB at micro-batch 1 and does not fit"),
    ],
)
def test_lock_gives_the_reason_for_fused_attention(compiled, mib, reason):
    status, lock, text, said = compiled(mib, spec=SPEC.replace("image_size: 32", "image_size: 96"))
    assert status == 0, said
    assert lock["model"]["attention_memory"] == "fused"
    assert re.search(f"attention_memory: fused  # {reason}\n", text)
