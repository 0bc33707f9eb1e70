"""Predicted peaks of live memory against the CPU's own allocator, for varied models: within 1 % each.

The trace is made with the CPU's semantics, so that the same rules are compared. `python test_trace_zoo.py`
prints the table.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.models import zoo as models
from tests.helpers.tracing import counted, replay, request, trace, zoo

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the runtime extra"),
]

SMALL_GPT = {"n_embd": 128, "n_layer": 3, "n_head": 4, "n_positions": 128, "vocab_size": 2000}
SMALL_BERT = {
    "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 512, "vocab_size": 2000,
    "max_position_embeddings": 128,
}  # fmt: skip
RAT = {"feature_dims": 32, "num_blocks": 2, "num_heads": 4}
RAT_3D = {
    "spatial_dims": 3, "input_features": 1, "feature_dims": 16, "num_blocks": 2, "num_heads": 2, "iters": 1,
    "proj_kernel_size": 3, "sga_kernel_size": 3, "stride": 2,
}  # fmt: skip
TWO_SCALES = {"name": "rat", "multi_scale": True, "args": RAT}

BOXES = {"num_blocks": 2, "num_heads": 2, "iters": 1, "sga_kernel_size": 9, "stride": 4}


def detector(**changes: Any) -> dict[str, Any]:
    """Return a request for RAT with a detection head, whose loss is of classes and boxes on an eighth of the image."""
    content = zoo("Detector", args=BOXES, **changes)
    content["training"]["loss"] = {"name": "zoo:boxes_loss", "args": {}}
    return content


def custom(model: str, data: str, loss: str, args: dict[str, Any], **of_model: Any) -> dict[str, Any]:
    """Return a request for a task of one's own, whose inputs are no images."""
    content = zoo(model, args=of_model)
    content["task_type"] = "custom"
    content["training"]["loss"] = {"name": f"zoo:{loss}", "args": {}}
    content["data"] |= {"dataset": f"zoo:{data}", "args": args}
    return content


CASES: dict[str, dict[str, Any]] = {
    "rat": request(data__image_size=[48, 48]),
    "rat, 2 blocks, dice": request(
        model__args=RAT, data__image_size=[40, 56], training__loss={"name": "dice", "args": {}}
    ),
    "rat, 2 scales": request(model=TWO_SCALES, data__image_size=[48, 48], data__scales=[1.0, 0.5]),
    "rat, checkpointed": request(model__args=RAT, data__image_size=[48, 48], training__activation_checkpointing=True),
    "rat, accumulation": request(model__args=RAT, data__image_size=[32, 32], accumulation=2),
    "rat, bf16": request(model__args=RAT, data__image_size=[48, 48], training__precision="bf16"),
    "rat, 3 classes": request(data={"image_size": [48, 48], "channels": 3, "scales": [1.0], "num_classes": 3}),
    "rat, 3D, 3 classes, 2 scales": request(
        model={"name": "rat", "multi_scale": True, "args": RAT_3D},
        data={"image_size": [12, 16, 20], "channels": 1, "scales": [1.0, 0.5], "num_classes": 3, "ignore_index": 255},
    ),
    "rat, 3D, chunked, bf16": request(
        model={"name": "rat", "multi_scale": False, "attention_memory": "chunked", "args": RAT_3D},
        data={"image_size": [16, 16, 16], "channels": 1, "scales": [1.0]},
        training__precision="bf16",
    ),
    "rat, detection": detector(data__image_size=[64, 160]),
    "rat, detection, tall, sgd": detector(data__image_size=[160, 72], training__optimizer="sgd"),
    "vit": zoo("vit", data__image_size=[64, 64]),
    "vit, frozen": zoo("frozen", data__image_size=[64, 64]),
    "vit, no clipping": zoo("vit", args={"depth": 2}, data__image_size=[64, 64], training__gradient_clipping=None),
    "resnet": zoo("resnet", data__image_size=[64, 64]),
    "resnet, checkpointed": zoo("resnet", data__image_size=[64, 64], training__activation_checkpointing=True),
    "resnet, sgd": zoo("resnet", data__image_size=[64, 64], training__optimizer="sgd"),
    "u-net": zoo("UNet", data__image_size=[64, 64]),
    "lstm": zoo("Lstm", args={"width": 64}, data__image_size=[32, 64]),
    "gpt-2": zoo("LanguageModel", args={"kind": "gpt2", "tokens": 128, **SMALL_GPT}),
    "bert": zoo("LanguageModel", args={"kind": "bert", "tokens": 128, **SMALL_BERT}),
    "rat, sgd without momentum": request(
        model__args=RAT, data__image_size=[40, 56], training__optimizer="sgd", training__momentum=0.0
    ),
    "vit, adafactor": zoo("vit", data__image_size=[64, 64], training__optimizer="adafactor"),
    "bert, muon": zoo("LanguageModel", args={"kind": "bert", "tokens": 128, **SMALL_BERT}, training__optimizer="muon"),
    "vit, lion": zoo("vit", data__image_size=[64, 64], training__optimizer="lion"),
    "mlp, shared, adam": zoo("Mlp", args={"shared": True}, training__optimizer="adam"),
    # The assignment of objects to queries needs values, which a trace has not: any has the same shapes.
    "rat, queries": request(
        task_type="detection",
        detection={"queries": 20, "decoder_layers": 2},
        model=TWO_SCALES,
        data={"image_size": [32, 32], "channels": 3, "scales": [1.0, 0.5], "num_classes": 5},
        training__loss={"name": "set_prediction", "args": {}},
    ),
    "rat, classes": request(
        task_type="classification",
        model=TWO_SCALES,
        data={"image_size": [48, 48], "channels": 3, "scales": [1.0, 0.5], "num_classes": 7},
        training__loss={
            "name": "cross_entropy",
            "args": {"label_smoothing": 0.1, "class_weights": [1, 2, 3, 4, 5, 6, 7]},
        },
    ),
    # Each head's loss has a graph of its own over the backbone that they share.
    "rat, two tasks": request(
        task_type="multi",
        tasks={
            "masks": {
                "task_type": "segmentation",
                "weight": 1,
                "loss": {"name": "combined"},
                "data": {"num_classes": 3},
            },
            "boxes": {
                "task_type": "detection",
                "weight": 0.5,
                "loss": {"name": "set_prediction"},
                "data": {"num_classes": 2},
                "detection": {"queries": 20, "decoder_layers": 2},
            },
        },
        model={"name": "rat", "multi_scale": False, "args": RAT},
        data={"image_size": [48, 48], "channels": 3, "scales": [1.0]},
        training__loss={"name": "weighted_sum", "args": {}},
    ),
    "pairs of samples": zoo("Pairs"),
    "mlp, checkpointed": zoo("Mlp", args={"checkpointed": True}, data__image_size=[64, 64]),
}
#: Inputs that are no images; language is among the others.
OTHER_INPUTS = {
    "sound": custom("Listener", "Sounds", "sound_loss", {"length": 16000}),
    "table": custom("Row", "Tables", "row_loss", {"numbers": 300}, numbers=300),
}
BATCH = 3  # neither of the two that are traced


def compare(content: dict[str, Any], folder: Path) -> tuple[float, int, float, int]:
    """Return the predicted and the counted peak, and the same for what is alive at the end, in bytes."""
    content = {**content, "semantics": "cpu"}
    predicted, left, _ = replay(trace(content, folder), BATCH)
    peak, live = counted(content, BATCH)
    return predicted, peak, left, live


@pytest.mark.parametrize("name", CASES)
def test_the_predicted_peak_equals_that_of_the_cpu_allocator(name: str, tmp_path: Path) -> None:
    predicted, peak, left, live = compare(CASES[name], tmp_path)
    assert predicted == pytest.approx(peak, rel=0.01)
    assert left == pytest.approx(live, rel=0.01)


@pytest.mark.slow(every=True)
@pytest.mark.parametrize("name", OTHER_INPUTS)
def test_the_predicted_peak_of_other_inputs_equals_that_of_the_cpu_allocator(name: str, tmp_path: Path) -> None:
    content = OTHER_INPUTS[name]
    predicted, peak, left, live = compare(content, tmp_path)
    # The data set's own sample stays on the host, where no GPU counts it.
    sample = bytes_of(getattr(models, content["data"]["dataset"].partition(":")[2]).example(**content["data"]["args"]))
    assert predicted + sample == pytest.approx(peak, rel=0.01)
    assert left + sample == pytest.approx(live, rel=0.01)


def bytes_of(sample: Any) -> int:
    return sum(map(bytes_of, sample.values())) if isinstance(sample, dict) else sample.nbytes


if __name__ == "__main__":
    CASES |= OTHER_INPUTS
    chosen = sys.argv[1:] or list(CASES)
    for case in chosen:
        import tempfile

        with tempfile.TemporaryDirectory() as made:
            try:
                guess, truth, _, _ = compare(CASES[case], Path(made))
            except AssertionError as error:
                print(f"{case:24}  {str(error)[-1500:]}", flush=True)
                continue
        print(
            f"{case:24}{guess / 2**20:10.3f}{truth / 2**20:10.3f} MiB {100 * (guess / truth - 1):+8.3f} %", flush=True
        )
