"""The tests themselves, in processes of their own: a card that hangs then stops a test, and not the check.

`python -m ratc_runtime.health alone|together|store …` prints a line of JSON for each thing that it begins or finds
(`{"at": …}`, `{"device": …}`, `{"network": …}`). `alone` begins when its standard input has a line.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from ratc_runtime.health import cards
from ratc_runtime.health.report import Device, NetworkReport, clipped

if TYPE_CHECKING:
    import torch

#: Rows of the square matrices, and bytes of the copies, on a card and on a processor.
ROWS = {"cuda": 8192, "cpu": 768}
COPIED = {"cuda": 2**30, "cpu": 2**26}
#: Each rate is the best of these repetitions: a pause by something else makes a test slow, and nothing makes it fast.
BEST_OF = {"cuda": 20, "cpu": 8}
#: Share of a card's free memory that the patterns fill, and their bytes on a processor.
FILLED, FILLED_CPU = 0.5, 2**26
#: Patterns of a byte that turn every bit once.
PATTERNS = (0x55, 0xAA)
#: Bytes that an all-reduce sums, of each process, and its repetitions.
REDUCED = {"cuda": 2**28, "cpu": 2**22}
ROUNDS = 5


def say(**what: Any) -> None:
    """Print one line of JSON."""
    print(json.dumps(what), flush=True)


def best_seconds(once: Callable[[], object], wait: Callable[[], object], times: int) -> float:
    """Return the shortest time of `times` calls, in seconds; `wait` waits until the device has finished a call."""
    once()
    wait()
    shortest = float("inf")
    for _ in range(times):
        begin = time.perf_counter()
        once()
        wait()
        shortest = min(shortest, time.perf_counter() - begin)
    return max(shortest, 1e-9)


def matrix_product(device: torch.device, dtype: torch.dtype) -> tuple[float, list[str]]:
    """Return 10^12 operations a second of a matrix product, and problems: a product must have the same values twice."""
    import torch

    rows = ROWS[device.type]
    generator = torch.Generator(device=device).manual_seed(0)
    left, right = (torch.randn(rows, rows, generator=generator, device=device, dtype=dtype) for _ in range(2))
    first, again = torch.empty_like(left), torch.empty_like(left)
    torch.matmul(left, right, out=first)
    seconds = best_seconds(lambda: torch.matmul(left, right, out=again), synchronizer(device), BEST_OF[device.type])
    same = torch.equal(first, again) if device.type == "cuda" else torch.allclose(first, again, rtol=1e-3, atol=1e-2)
    problems = (
        [] if same and bool(again.isfinite().all()) else ["the same matrix product has other values the next time"]
    )
    return 2 * rows**3 / seconds / 1e12, problems


def memory(device: torch.device) -> tuple[float, list[str]]:
    """Return 10^9 bytes a second that a copy reads and writes, and problems: memory must keep its values."""
    import torch

    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    size = COPIED[device.type] if free is None else min(COPIED["cuda"], free // 8)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = best_seconds(partial(target.copy_, source), synchronizer(device), BEST_OF[device.type])
    del source, target
    filled = int(torch.cuda.mem_get_info(device)[0] * FILLED) if device.type == "cuda" else FILLED_CPU
    wrong = 0
    pieces = [torch.empty(min(size, filled - at), dtype=torch.uint8, device=device) for at in range(0, filled, size)]
    for pattern in PATTERNS:
        for piece in pieces:
            piece.fill_(pattern)
        wrong += sum(int((piece != pattern).sum()) for piece in pieces)
    problems = [f"{wrong} of {filled * len(PATTERNS)} bytes of its memory keep another value"] if wrong else []
    return 2 * size / seconds / 1e9, problems


def synchronizer(device: torch.device) -> Callable[[], object]:
    """Return the function that waits for a device."""
    import torch

    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)


def alone(kind: str, count: int, precision: str) -> None:
    """Test the node's `count` devices, all at once, and print a `device` for each, with rates in 10^12 operations and
    10^9 bytes a second.
    """
    import torch

    say(imported=True)
    if not sys.stdin.readline():
        return  # the check has ended
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[
        precision if kind == "cuda" else "fp32"
    ]

    def test(index: int) -> Device:
        device = torch.device(kind, index) if kind == "cuda" else torch.device("cpu")
        problems: list[str] = []
        rates: dict[str, Any] = {}
        try:
            say(at=f"card {index}: matrix product" if kind == "cuda" else "matrix product")
            rates["matrix_tflops"], wrong = matrix_product(device, dtype)
            problems += wrong
            say(at=f"card {index}: memory" if kind == "cuda" else "memory")
            rates["memory_gb_s"], wrong = memory(device)
            problems += wrong
        except Exception as error:  # torch's own hierarchy: a driver's fault is what this looks for
            problems.append(f"the test failed: {type(error).__name__}: {error}")
        return Device(index=index, problems=[clipped(one) for one in problems], **rates)

    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(test, range(count)))
    # Now, for only a card that was just busy shows that it is held down.
    seen = {one.index: one for one in _states(kind, count)}
    for device in found:
        state = seen.get(device.index)
        if state is not None:
            device = device.replace(problems=[*device.problems, *state.problems], doubts=state.doubts)
        say(device=device.model_dump())


def _states(kind: str, count: int) -> list[Device]:
    if kind != "cuda":
        return []
    say(at="the state of the cards (NVML)")
    try:
        return cards.states(os.environ, count)
    except Exception as error:  # NVML's own hierarchy; AMD has none
        say(note=clipped(f"no state of the cards: {type(error).__name__}: {error}"))
        return []


def together(kind: str, local: int, count: int, rank: int, nodes: int, address: str, seconds: float) -> None:
    """Sum tensors among the node's cards and among the nodes, and print the rates as `network`."""
    import torch
    import torch.distributed as dist

    device = torch.device(kind, local) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(device)
    signal.alarm(int(seconds) + 10)  # if nobody is left who would end it
    meeting, _, name = address.rpartition("/")
    host, _, port = meeting.rpartition(":")
    found = dist.TCPStore(host, int(port), is_master=False, timeout=timedelta(seconds=seconds))
    place, world = rank * count + local, nodes * count
    say(at="joining the others")
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        store=dist.PrefixStore(name, found),
        rank=place,
        world_size=world,
        timeout=timedelta(seconds=seconds),
    )
    rates: dict[str, Any] = {}
    size = REDUCED[kind]
    values = torch.ones(size // 4, device=device)

    def reduce(group: Any, members: int) -> float:
        """Return 10^9 bytes a second that a process sends, as NCCL's tests count them (`busbw`)."""
        taken = best_seconds(lambda: dist.all_reduce(values, group=group), synchronizer(device), ROUNDS)
        return 2 * (members - 1) / members * size / taken / 1e9

    if count > 1:
        say(at="an all-reduce among the cards of the node")
        own = [dist.new_group(list(range(node * count, (node + 1) * count))) for node in range(nodes)]
        rates["link_gb_s"] = reduce(own[rank], count)
    if nodes > 1:
        say(at="an all-reduce among the nodes")
        # A ring crosses from node to node as often as from card to card: a node sends as much as each card.
        rates["network_gb_s"] = reduce(None, world)
    values.fill_(1)
    dist.all_reduce(values)
    wrong = int((values != world).sum())
    problem = f"the sum of {world} ones has {wrong} of {size // 4} values wrong" if wrong else None
    say(network=NetworkReport(**rates, problem=problem).model_dump())
    dist.destroy_process_group()


def store() -> None:
    """Keep the addresses by which the processes of an all-reduce meet, until the check ends."""
    import torch.distributed as dist

    kept = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    say(port=kept.port)
    sys.stdin.read()


def main(argv: list[str] | None = None) -> int:
    """Run one kind of test."""
    parser = argparse.ArgumentParser(prog="python -m ratc_runtime.health", description="Test this node.")
    parser.add_argument("what", choices=("alone", "together", "store"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cpu")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--precision", choices=("bf16", "fp16", "fp32"), default="fp32")
    parser.add_argument("--local", type=int, default=0)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--store", default="", help="HOST:PORT/NAME of the group")
    parser.add_argument("--seconds", type=float, default=30.0)
    given = parser.parse_args(argv)
    if given.what == "alone":
        alone(given.device, given.count, given.precision)
    elif given.what == "store":
        store()
    else:
        together(given.device, given.local, given.count, given.rank, given.nodes, given.store, given.seconds)
    return 0
