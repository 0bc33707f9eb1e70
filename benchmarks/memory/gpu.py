"""Measure training steps on a real GPU, for predictions to be held against: `python benchmarks/memory/gpu.py`.

Needs CUDA torch, numpy, the RAT package and this checkout; no network. Every case is a process of its own; what cannot
run here is skipped and said. What was measured, and the allocator's own events, go to a folder in
benchmarks/memory/data/, one a card and day; tests/measurements/test_gpu_truth.py replays every folder there. A second
run on the same day goes on with the cases that are missing. `--dry` only lists the cases: it needs no GPU and writes
nothing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ZOO = ROOT / "tests" / "helpers" / "models"
DATA = HERE / "data"
VERSION = 1
GIB = 1 << 30
#: Where a request's models are found; the replay needs the same.
PATHS = (ROOT / "runtime", HERE, ZOO)
sys.path[:0] = [str(ROOT), str(ZOO)]

from tests.helpers.tracing import request, zoo  # noqa: E402

PRECISIONS: dict[str, dict[str, Any]] = {
    "bf16": {"training__precision": "bf16", "training__tf32": True},
    "fp32": {"training__precision": "fp32", "training__tf32": False},
    "tf32": {"training__precision": "fp32", "training__tf32": True},
    "fp16": {"training__precision": "fp16", "training__tf32": True},
}
RAT = {"feature_dims": 64, "num_blocks": 2, "num_heads": 8}
OWN_SIZE = {"feature_dims": 128, "num_blocks": 4, "num_heads": 16}
VIT = {"img_size": 224, "patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12}
BERT = {"kind": "bert", "tokens": 512}
BOXES = {"width": 64, "num_blocks": 2, "num_heads": 4, "sga_kernel_size": 9, "stride": 4}


def _rat(**changes: Any) -> dict[str, Any]:
    model = {"name": "rat", "multi_scale": False, "args": RAT, "attention_memory": "full"}
    return request(**{"model": model, "data__image_size": [96, 96], **changes})


def _rat_own_size(attention: str = "chunked", **changes: Any) -> dict[str, Any]:
    model = {"name": "rat", "multi_scale": False, "args": OWN_SIZE, "attention_memory": attention}
    return request(**{"model": model, "data__image_size": [256, 256], **changes})


def _rat_scales(**changes: Any) -> dict[str, Any]:
    model = {"name": "rat", "multi_scale": True, "args": RAT, "attention_memory": "full"}
    return request(**{"model": model, "data__image_size": [80, 80], "data__scales": [1.0, 0.5], **changes})


def _boxes(**changes: Any) -> dict[str, Any]:
    content = zoo("Detector", args=BOXES, data__image_size=[96, 192], **changes)
    content["training"]["loss"] = {"name": "zoo:boxes_loss", "args": {}}
    return content


#: Model, its request, two micro-batches that take some GiB on a card, and the package it needs beside torch.
MODELS: dict[str, tuple[Any, tuple[int, int], str | None]] = {
    "gpt-2 small": (lambda **c: zoo("gpt:Gpt", **{"data__image_size": [32, 32], **c}), (8, 16), None),
    "rat": (_rat, (4, 8), "timm"),
    "resnet-18": (
        lambda **c: zoo("resnet18", **{"data__image_size": [224, 224], **c}),
        (64, 256),
        "timm",
    ),
    "vit-b": (lambda **c: zoo("vit", args=VIT, **{"data__image_size": [224, 224], **c}), (32, 96), "timm"),
    "rat, own size, chunked": (_rat_own_size, (1, 2), "timm"),
    "u-net": (lambda **c: zoo("UNet", args={"width": 32}, **{"data__image_size": [256, 256], **c}), (16, 48), None),
    "rat, 2 scales": (_rat_scales, (4, 12), "timm"),
    "rat, detection": (_boxes, (2, 4), "timm"),
    "lstm": (
        lambda **c: zoo("Lstm", args={"width": 256, "hidden": 1024}, **{"data__image_size": [128, 256], **c}),
        (32, 96),
        None,
    ),
    "bert": (
        lambda **c: zoo("LanguageModel", args=BERT, **{"data__image_size": [32, 32], **c}),
        (8, 24),
        "transformers",
    ),
    "vit-b, frozen": (lambda **c: zoo("frozen", args=VIT, **{"data__image_size": [224, 224], **c}), (64, 128), "timm"),
    "mlp, shared": (
        lambda **c: zoo("Mlp", args={"width": 1024, "shared": True}, **{"data__image_size": [64, 64], **c}),
        (8, 24),
        None,
    ),
}


def _timm(name: str, pixels: int = 224, **args: Any) -> Any:
    arguments = {"model_name": name, "num_classes": 10, **args}
    return lambda **c: zoo("timm:create_model", args=arguments, **{"data__image_size": [pixels, pixels], **c})


def _gru(**changes: Any) -> dict[str, Any]:
    args = {"kind": "gru", "width": 256, "hidden": 512, "layers": 3, "bidirectional": True, "dropout": 0.2}
    return zoo("recurrent_models:Layer", args=args, **{"data__image_size": [64, 256], **changes})


def _video(**changes: Any) -> dict[str, Any]:
    return zoo("torchvision.models.video:r3d_18", **{"data__image_size": [16, 112, 112], **changes})


#: The same for models of other people, to which no rule was fitted.
OTHERS: dict[str, tuple[Any, tuple[int, int], str | None]] = {
    "rat, own size, fused": (lambda **changes: _rat_own_size("fused", **changes), (2, 8), None),
    "resnet-50": (_timm("resnet50"), (32, 96), "timm"),
    "convnext-tiny": (_timm("convnext_tiny"), (32, 96), "timm"),
    "efficientnet-b0": (_timm("efficientnet_b0"), (48, 128), "timm"),
    "swin-tiny": (_timm("swin_tiny_patch4_window7_224"), (32, 96), "timm"),
    "densenet-121": (_timm("densenet121"), (32, 80), "timm"),
    "regnety-016": (_timm("regnety_016"), (48, 128), "timm"),
    "r3d-18": (_video, (4, 12), "torchvision"),
    "mobilenet-v3": (_timm("mobilenetv3_large_100"), (64, 192), "timm"),
    "vgg-11": (_timm("vgg11_bn"), (16, 64), "timm"),
    "mixer-b": (_timm("mixer_b16_224"), (32, 96), "timm"),
    "gru, both ways": (_gru, (24, 96), None),
    "gpt-2, transformers": (
        lambda **c: zoo("LanguageModel", args={"kind": "gpt2", "tokens": 512}, **{"data__image_size": [32, 32], **c}),
        (4, 12),
        "transformers",
    ),
}
ALL = {**MODELS, **OTHERS}


def cases() -> list[dict[str, Any]]:
    """Every case, the most informative first: each differs from those before it in one thing more."""
    found: list[dict[str, Any]] = []

    def add(mode: str, model: str, what: str, micro_batch: int, changes: dict[str, Any], **more: Any) -> None:
        make, _, needs = ALL[model]
        case = {"mode": mode, "name": f"{model}, {what}", "request": make(**changes), "micro_batch": micro_batch}
        found.append(
            {
                **case,
                "needs": [needs] if needs else [],
                "zero_stage": None,
                "cap_bytes": None,
                "allocator": "native",
                **more,
            }
        )

    def bisect(model: str, gib: int, precision: str = "bf16") -> None:
        what = f"{precision}, largest under {gib} GiB"
        add("bisect", model, what, ALL[model][1][1], PRECISIONS[precision], cap_bytes=gib * GIB)

    for model in ALL:
        add("measure", model, "bf16", ALL[model][1][1], PRECISIONS["bf16"])
    for model in ("gpt-2 small", "resnet-18", "u-net"):
        changes = {**PRECISIONS["bf16"], "training__compile": True}
        add("measure", model, "bf16, compiled", ALL[model][1][0], changes)
    for model, precision in (("resnet-18", "bf16"), ("u-net", "bf16"), ("u-net", "tf32")):
        changes = {**PRECISIONS[precision], "model__args": {**_args(model), "channels_last": True}}
        add("measure", model, f"{precision}, channels_last", ALL[model][1][0], changes)
    for model in ("gpt-2 small", "u-net"):
        more = {"allocator": "expandable_segments"}
        add("measure", model, "bf16, expandable", ALL[model][1][1], PRECISIONS["bf16"], **more)
        what = "bf16, expandable, largest under 24 GiB"
        add("bisect", model, what, ALL[model][1][1], PRECISIONS["bf16"], cap_bytes=24 * GIB, **more)
    for model in ("resnet-50", "efficientnet-b0", "r3d-18", "convnext-tiny", "swin-tiny"):
        bisect(model, 24)
    for model in ("resnet-50", "convnext-tiny", "regnety-016", "r3d-18"):
        add("measure", model, "tf32", ALL[model][1][0], PRECISIONS["tf32"])
    for model in ("efficientnet-b0", "gru, both ways"):
        add("measure", model, "fp32", ALL[model][1][0], PRECISIONS["fp32"])
    for model in ("gpt-2 small", "rat", "resnet-18"):
        bisect(model, 24)
    for precision in ("fp32", "fp16", "tf32"):
        for model in list(MODELS)[:6]:
            add("measure", model, precision, ALL[model][1][0], PRECISIONS[precision])
    for model in ("gpt-2 small", "vit-b", "rat"):
        changes = {**PRECISIONS["bf16"], "training__activation_checkpointing": True}
        add("measure", model, "bf16, checkpointed", ALL[model][1][1], changes)
    for optimizer in ("sgd", "adam"):
        for model in ("gpt-2 small", "resnet-18"):
            changes = {**PRECISIONS["bf16"], "training__optimizer": optimizer}
            add("measure", model, f"bf16, {optimizer}", ALL[model][1][0], changes)
    for stage in (1, 2, 3):
        for model in ("gpt-2 small", "vit-b"):
            changes = {**PRECISIONS["bf16"], "engine": "deepspeed"}
            more = {"zero_stage": stage, "needs": ["deepspeed", "accelerate"]}
            add("measure", model, f"bf16, ZeRO {stage}", ALL[model][1][0], changes, **more)
    for model in ("gpt-2 small", "rat"):
        add("measure", model, "bf16, accumulating", ALL[model][1][0], {**PRECISIONS["bf16"], "accumulation": 2})
    for model in ("u-net", "vit-b"):
        bisect(model, 24)
    for model in ("gpt-2 small", "rat, own size, chunked"):
        bisect(model, 40)
    for model in MODELS:
        add("measure", model, "bf16, smaller", ALL[model][1][0], PRECISIONS["bf16"])
    bisect("gpt-2 small", 24, "fp32")
    return found


def _args(model: str) -> dict[str, Any]:
    args: dict[str, Any] = ALL[model][0]()["model"]["args"]
    return args


def run_case(case: dict[str, Any], limit_s: float) -> dict[str, Any]:
    """Run one case as a process; what went wrong is a result too, under `failed`."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, PATHS)),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "4",
    }
    # The allocator as it comes, or with the case's setting under both of its names.
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        environment.pop(name, None)
        if case.get("allocator") == "expandable_segments":
            environment[name] = "expandable_segments:True"
    command = [sys.executable, str(HERE / "gpu_case.py")]
    try:
        done = subprocess.run(
            command, input=json.dumps(case), capture_output=True, text=True, timeout=limit_s, env=environment, cwd=HERE
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"did not end within {limit_s:.0f} s"}
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return {"failed": (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1][:400]}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


class Session:
    """Cases in turn until the time is up, a few at once; the file is written anew after every result."""

    def __init__(self, path: Path, head: dict[str, Any], budget_s: float, jobs: int, events: bool = False) -> None:
        self.path, self.head, self.jobs, self.events = path, head, jobs, events
        self.start, self.end = time.monotonic(), time.monotonic() + budget_s
        self.rows: list[dict[str, Any]] = []
        self.skipped: list[dict[str, str]] = []
        self.lock = threading.Lock()

    def run(self, wanted: list[dict[str, Any]]) -> None:
        """Run all that the file has not: the first two alone, so that the memory beside the allocator is known, the
        others together.
        """
        if self.path.exists():
            rows = json.loads(self.path.read_text(encoding="utf-8"))["rows"]
            self.rows = [row for row in rows if "failed" not in row]
        done = {row["name"] for row in self.rows}
        alone = 0 if done else 2
        left = [case for case in wanted if case["name"] not in done]
        for case in left[:alone]:
            self.one({**case, "alone": True})
        with ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(self.one, [{**case, "alone": self.jobs == 1} for case in left[alone:]]))

    def one(self, case: dict[str, Any]) -> None:
        """Run one case, if there is time."""
        left = self.end - time.monotonic()
        missing = [name for name in case["needs"] if find_spec(name) is None]
        small = (case["cap_bytes"] or 0) > self.head.get("card", {}).get("memory_bytes", 1 << 60)
        if missing or small or left < 20:
            why = "the card is smaller" if small else "the time was up"
            why = f"{', '.join(missing)} not installed" if missing else why
            with self.lock:
                self.skipped.append({"name": case["name"], "why": why})
            print(f"skipped  {case['name']}: {why}", flush=True)
            return
        begun = time.monotonic()
        if self.events and case["mode"] == "measure":
            slug = re.sub(r"[^a-z0-9]+", "-", case["name"].lower()).strip("-")
            case = {**case, "record": str(self.path.parent / "events" / f"{slug}.json.xz")}
        found = run_case(case, min(left, 150))
        if "failed" in found and case.pop("record", None):  # torch 2.11 cannot record every checkpointed model
            found = run_case(case, min(left, 150))
        keys = ("mode", "name", "request", "micro_batch", "zero_stage", "cap_bytes", "allocator")
        row = {**{key: case[key] for key in keys}, **found, "seconds": round(time.monotonic() - begun, 1)}
        with self.lock:
            self.rows.append(row)
            self.write()
        print(f"{row['seconds']:6.1f} s  {case['name']}: {told(found)}", flush=True)

    def write(self) -> None:
        """Write what there is, beside and then in place."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        body = {**self.head, "rows": sorted(self.rows, key=lambda row: str(row["name"])), "skipped": self.skipped}
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
        part.replace(self.path)


def told(found: dict[str, Any]) -> str:
    """A result in a few words."""
    if "largest" in found:
        return f"largest {found['largest']} of {len(found['tried'])} tried"
    if "peak_reserved_bytes" in found:
        allocated, reserved = (found[f"peak_{kind}_bytes"] / GIB for kind in ("allocated", "reserved"))
        return f"{allocated:.2f} GiB allocated, {reserved:.2f} reserved"
    return str(found.get("failed") or found.get("out_of_memory"))


def main() -> int:
    """Exit status 1 where there is no GPU, or nothing could be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=540, metavar="S", help="seconds for all of it (default 540)")
    parser.add_argument("--jobs", type=int, help="cases at once (default: one for every 42 GiB of the card, 3 at most)")
    parser.add_argument("--out", type=Path, default=DATA, metavar="DIR", help="where the card's folder goes")
    parser.add_argument("--no-events", action="store_true", help="do not record the allocator's events")
    parser.add_argument("--only", metavar="TEXT", help="only cases whose name holds this")
    parser.add_argument("--dry", action="store_true", help="list the cases; measure and write nothing")
    args = parser.parse_args()
    begun = time.monotonic()
    wanted = [{**case, "device": "cuda", "guess": case["micro_batch"]} for case in cases()]
    wanted = [case for case in wanted if not args.only or args.only in case["name"]]
    if args.dry:
        for number, case in enumerate(wanted, 1):
            missing = [name for name in case["needs"] if find_spec(name) is None]
            note = f"  (skipped here: no {', '.join(missing)})" if missing else ""
            print(f"{number:3}  {case['mode']:8} {case['name']}, micro-batch {case['micro_batch']}{note}")
        print(f"{len(wanted)} cases; nothing was measured or written")
        return 0
    about = run_case({"mode": "facts"}, 120)
    card = about.get("card")
    if not card:
        print(f"gpu.py: torch sees no GPU here ({about.get('failed', about)}); --dry lists the cases", file=sys.stderr)
        return 1
    for case in wanted:
        case["request"]["compute_capability"] = card["compute_capability"]
    jobs = args.jobs or max(1, min(3, card["memory_bytes"] // (42 * GIB)))
    day = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    slug = re.sub(r"[^a-z0-9]+", "-", card["name"].lower()).strip("-")
    budget = args.budget - (time.monotonic() - begun)
    head = {"data_version": VERSION, "date": day, "jobs": jobs, **about}
    session = Session(args.out / f"{slug}-{day}" / "measured.json", head, budget, jobs, not args.no_events)
    session.run(wanted)
    measured = [row for row in session.rows if "peak_reserved_bytes" in row or "largest" in row]
    print(f"{len(measured)} of {len(wanted)} cases measured on {card['name']}; {session.path}")
    return 0 if measured else 1


if __name__ == "__main__":
    sys.exit(main())
