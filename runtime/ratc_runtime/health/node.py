"""A node's tests: the processes that make them, and a deadline for each, a time of `time.monotonic()`."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from ratc_runtime.health.report import Device, NetworkReport, NodeReport, clipped

#: Longest line of a test.
_LINE = 2**16


class Child:
    """A test in a process of its own, killed at the end of a `with` block, also if it hangs."""

    def __init__(self, *arguments: str) -> None:
        self.last = "starting"
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._stderr: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ratc_runtime.health", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        for read in (self._read, self._read_errors):
            threading.Thread(target=read, daemon=True).start()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        # One that waits for a device cannot be killed, and is left behind.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1)

    def let_begin(self) -> None:
        """Let the test begin."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write("go\n")
            self._process.stdin.flush()

    def words(self, deadline: float) -> Iterator[dict[str, Any]]:
        """Yield the test's messages until it ends. Raises TimeoutError at the deadline, OSError if the test failed."""
        while True:
            try:
                word = self._lines.get(timeout=max(0, deadline - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(self.last) from None
            if word is None:
                break
            if "at" in word:
                self.last = clipped(word["at"])
            yield word
        try:
            status = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            raise TimeoutError(self.last) from None
        if status != 0:
            end = clipped(self._stderr[-1] if self._stderr else "no message")
            raise OSError(f"{self.last}: status {status}, {end}")

    def _read(self) -> None:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline(_LINE):
            with contextlib.suppress(ValueError, RecursionError):
                word = json.loads(line)
                if isinstance(word, dict):
                    self._lines.put(word)
        self._lines.put(None)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        while line := self._process.stderr.readline(_LINE):
            if line.strip():
                self._stderr = [*self._stderr[-4:], line]


class Node:
    """This node: `count` devices of a kind, and the type of its matrix products."""

    def __init__(self, host: str, kind: str, count: int, precision: str) -> None:
        self.host, self.kind, self.count = host, kind, count
        self._own = ("--device", kind, "--count", str(count))
        self._alone = Child("alone", *self._own, "--precision", precision)

    def ready(self, deadline: float) -> None:
        """Return when torch is imported, without a look at a card, or at the deadline. A failure shows in `alone`."""
        with contextlib.suppress(TimeoutError, OSError):
            for word in self._alone.words(deadline):
                if "imported" in word:
                    return

    def alone(self, deadline: float) -> NodeReport:
        """Return the report on this node's devices."""
        devices: list[Device] = []
        problems: list[str] = []
        try:
            self._alone.let_begin()
            for word in self._alone.words(deadline):
                if "device" in word:
                    devices.append(Device.model_validate(word["device"]))
        except TimeoutError as error:
            problems.append(clipped(f"a test hangs: {error}"))
        except (OSError, ValidationError) as error:
            problems.append(clipped(f"a test failed: {error}"))
        missing = [index for index in range(self.count) if index not in {one.index for one in devices}]
        if missing and not problems:
            problems.append(f"no result of the devices {', '.join(map(str, missing))}")
        return NodeReport(host=clipped(self.host), devices=devices, problems=problems)

    def together(self, place: int, members: int, store: str, deadline: float) -> NetworkReport:
        """Return the report on an all-reduce, as number `place` of `members` nodes. The slowest card counts."""
        left = deadline - time.monotonic()
        common = (*self._own, "--rank", str(place), "--nodes", str(members), "--store", store, f"--seconds={left:.1f}")
        found: list[NetworkReport] = []
        with contextlib.ExitStack() as stack:
            children = [stack.enter_context(Child("together", *common, "--local", str(i))) for i in range(self.count)]
            try:
                for child in children:
                    words = child.words(deadline)
                    found += [NetworkReport.model_validate(word["network"]) for word in words if "network" in word]
            except TimeoutError as error:
                return NetworkReport(problem=clipped(f"hangs: {error}"))
            except (OSError, ValidationError) as error:
                return NetworkReport(problem=clipped(f"failed: {error}"))
        if not found:
            return NetworkReport(problem="no result")
        slowest = {
            key: min(rates)
            for key in ("link_gb_s", "network_gb_s")
            if (rates := [rate for one in found if (rate := getattr(one, key)) is not None])
        }
        return NetworkReport(**slowest, problem=next((one.problem for one in found if one.problem), None))

    def close(self) -> None:
        """End the process of the tests."""
        self._alone.__exit__()
