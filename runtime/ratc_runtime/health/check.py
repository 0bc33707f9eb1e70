"""The check of all nodes of a start, which `python -m ratc_runtime.preflight --health` makes on each of them.

The first node leads: it gathers the reports, has the nodes sum a tensor together, and gives the verdict. It touches no
card itself, and waits for nobody after a deadline. So a node that hangs is one that did not answer.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median_high
from typing import Any

from pydantic import ValidationError

from ratc_runtime.config.lock import Lock
from ratc_runtime.config.program_lock import ProgramLock
from ratc_runtime.config.sections import Health
from ratc_runtime.distributed import launch_environment
from ratc_runtime.errors import RuntimeFinding, say, warn, warn_of
from ratc_runtime.health import record
from ratc_runtime.health.exchange import Head, Line, Silence, join
from ratc_runtime.health.judge import EXPECTED, Verdict, against_good, judge, judge_links, pairs
from ratc_runtime.health.node import Child, Node
from ratc_runtime.health.report import NetworkReport, NodeReport, clipped
from ratc_runtime.output.sizes import counted

#: The start's own key, from the batch script.
KEY = "RATC_HEALTH_KEY"
#: The job's first id if it was submitted again without some nodes.
JOB = "RATC_HEALTH_JOB"
#: Seconds for all nodes to set up their environment and to import torch; as `meeting`, before the test begins.
PATIENCE_S = 180.0
#: Seconds of the test after that, and its times for each node alone, all nodes together, and each round of pairs.
LIMIT_S = 60.0
ALONE_S, TOGETHER_S, ROUND_S = 28.0, 15.0, 8.0
#: Seconds between a node's own deadline and that of the first node for its report.
_SLACK_S = 1.0


@dataclass(frozen=True)
class Start:
    """One start of a job, on one of its nodes. `names` are the scheduler's names of the nodes, by rank; `head` is the
    first node's name, and `port` the port on which it listens.
    """

    id: str
    job: str
    rank: int
    nodes: int
    names: tuple[str, ...]
    head: str
    port: int
    key: bytes


def start_of(
    lock: Lock | ProgramLock, environment: Mapping[str, str], id: str, rank: int, head: str, port: int
) -> Start:
    """Return this start. Raises R622 if it has several nodes and no key."""
    nodes = lock.parallel.nodes
    try:
        names = launch_environment.detect(environment).hosts
    except ValueError:
        names = ()
    if len(names) == nodes + 1:  # with jsrun the launch node comes first
        names = names[1:]
    if len(names) != nodes:  # without a scheduler
        names = (socket.gethostname(),) if nodes == 1 else tuple(f"node {number}" for number in range(nodes))
    key = environment.get(KEY, "")
    if nodes > 1 and not key:
        message = f"the nodes cannot speak with each other: {KEY} is not set"
        raise RuntimeFinding("R622", message, "the batch script sets it", "submit the compiled job as it is")
    job = environment.get(JOB) or id.rpartition(".")[0] or id
    return Start(id, job, rank, nodes, names, head, port, key.encode())


def check(lock: Lock | ProgramLock, start: Start, output_dir: Path, patience: float = PATIENCE_S) -> None:
    """Test this node with the others; `patience` is in seconds.

    Raises R617, R618, R620, R621 or R622 unless training may start.
    """
    health = lock.health
    if health is None:
        raise RuntimeFinding(
            "R622",
            "the lock checks no nodes",
            "it has no section `health`",
            "set `health_check: always` under `resources` and compile again",
        )
    hardware = lock.hardware
    count = lock.parallel.processes_per_node if hardware.device == "cuda" else 1
    name = start.names[start.rank]
    node = Node(name, hardware.device, count, lock.training.precision)
    try:
        until = time.monotonic() + patience
        node.ready(until)
        if start.rank > 0:
            _follow(node, start, until)
        else:
            _run_as_head(node, start, health, hardware.device, output_dir, until, bool((lock.job or {}).get("requeue")))
    finally:
        node.close()


def _follow(node: Node, start: Start, until: float) -> None:
    """Follow the orders of the first node, until it gives its verdict."""
    with _silence_as_finding(start, "did not answer"):
        line = join(start.head, start.port, start.key, start.id, start.rank, until)
    with _silence_as_finding(start, "gave no verdict"):
        while True:
            # The first node may have begun later than this one, and waits for others.
            order = line.receive(time.monotonic() + PATIENCE_S + LIMIT_S)
            what, number = order.get("do"), order.get("number")
            deadline = time.monotonic() + min(float(order.get("seconds", 0)), LIMIT_S)
            if what == "alone":
                line.send({"number": number, "report": node.alone(deadline).model_dump()})
            elif what == "together":
                place, members, store = int(order["place"]), int(order["members"]), str(order["store"])
                line.send({"number": number, "report": node.together(place, members, store, deadline).model_dump()})
            elif what == "end" and order.get("passed") is True:
                return
            else:
                why = clipped(order.get("why", "the start is refused"))
                raise RuntimeFinding("R617", f"the nodes of this start do not pass the check of their health: {why}")


@contextlib.contextmanager
def _silence_as_finding(start: Start, what: str) -> Any:
    """Turn the first node's silence, or nonsense, into R622."""
    try:
        yield
    except (Silence, KeyError, TypeError, ValueError):
        here = socket.gethostname()
        raise RuntimeFinding(
            "R622",
            f"the first node {start.head} {what} in the check of the nodes' health",
            f"asked by the node {here} at port {start.port}",
            "its log says more; the log of the job names nodes that it could not hear",
        ) from None


def _run_as_head(
    node: Node, start: Start, health: Health, device: str, output_dir: Path, until: float, requeue: bool
) -> None:
    """Lead the check, record it, and raise a finding unless training may start."""
    try:
        head = Head(start.port, start.key, start.id, start.nodes)
    except OSError as error:
        raise RuntimeFinding(
            "R622", f"the first node cannot listen on port {start.port}", error.strerror or str(error)
        ) from None
    with contextlib.suppress(OSError):  # the script has removed it, too
        (output_dir / record.UNHEALTHY).unlink()
    head.wait(until)
    begin = time.monotonic()
    verdict = _tests(node, start, health, device, head.lines, begin)
    head.stop_listening()
    seconds = time.monotonic() - begin
    # A node that comes again, as its exclusion failed, is counted once.
    again = {start.names[rank] for rank in verdict.excluded}
    left = health.max_excluded_nodes - len(record.excluded_by(output_dir, start.job) - again)
    excluded = verdict.excluded if len(verdict.excluded) <= left else []
    names = [start.names[rank] for rank in excluded]
    reasons = {start.names[rank]: why for rank, why in sorted(verdict.bad.items())}
    reasons |= {start.names[rank]: ["did not answer"] for rank in verdict.silent}
    entry = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "job": start.job,
        "start": start.id,
        "nodes": list(start.names),
        "seconds": round(seconds, 1),
        "passed": verdict.passed,
        "bad": reasons,
        "excluded": names,
        "warnings": verdict.warnings,
    }
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        record.add(output_dir, entry)
        if excluded:
            record.exclude(output_dir, excluded)
    except OSError as error:
        warn(f"cannot record the check of the nodes in {output_dir}: {error.strerror or error}")
    for warning in verdict.warnings:
        warn_of(RuntimeFinding("R619", warning))
    finding = _finding(verdict, start, left, requeue)
    why = "" if finding is None else finding.message
    for line in head.lines.values():
        line.send({"do": "end", "passed": verdict.passed, "why": why})
    if finding is not None:
        raise finding
    say(f"the nodes pass the check of their health: {', '.join(start.names)} ({seconds:.0f} s)")


def _tests(node: Node, start: Start, health: Health, device: str, lines: Mapping[int, Line], begin: float) -> Verdict:
    """Have all nodes make their tests, and judge them."""
    if start.nodes == 1 and node.count == 1:
        return judge(_single_node_reports(node, lines, begin + ALONE_S), 1, health, device, start.names)
    with Child("store") as child:
        verdict = judge(_single_node_reports(node, lines, begin + ALONE_S), start.nodes, health, device, start.names)
        if not verdict.passed:
            return verdict
        try:
            port = next(word["port"] for word in child.words(time.monotonic() + ROUND_S) if "port" in word)
        except (TimeoutError, OSError, StopIteration) as error:
            verdict.warnings.append(f"the network was not tested: {error}")
            return verdict
        group = _Group(node, lines, f"{start.head}:{port}")
        all_nodes = range(start.nodes)
        found = group.together([(*all_nodes,)], begin + ALONE_S + TOGETHER_S)
        verdict.bad |= judge_links(found)
        failed = {rank: one.problem for rank, one in found.items() if one.problem}
        rates = [one.network_gb_s for one in found.values() if one.network_gb_s is not None]
        slow = bool(rates and health.network_gb_s and min(rates) < EXPECTED * health.network_gb_s)
        if not verdict.passed or not (failed or slow):
            return verdict
        if start.nodes == 1:
            verdict.bad = {0: [f"an all-reduce among its cards {failed[0]}"]}
            return verdict
        _find_by_pairs(group, verdict, start, begin + LIMIT_S)
    if verdict.passed:
        what = clipped(next(iter(failed.values()))) if failed else f"{min(rates):.3g} GB/s"
        verdict.warnings.append(
            f"an all-reduce among all nodes: {what}; each pair of nodes alone is well, so no node is left out"
        )
    return verdict


def _single_node_reports(node: Node, lines: Mapping[int, Line], deadline: float) -> dict[int, NodeReport]:
    """Return the reports that came in time."""
    left = deadline - time.monotonic()
    for line in lines.values():
        line.send({"do": "alone", "number": 0, "seconds": left})
    reports = {0: node.alone(deadline)}
    for rank, line in lines.items():
        with contextlib.suppress(Silence, ValidationError):
            reports[rank] = NodeReport.model_validate(_answer(line, 0, deadline))
    return reports


def _answer(line: Line, number: int, deadline: float) -> Any:
    """Return a node's report on an order; late reports on earlier orders are skipped."""
    while True:
        word = line.receive(deadline + _SLACK_S)
        if word.get("number") == number:
            return word.get("report")


class _Group:
    """The nodes, for tests that several make together."""

    def __init__(self, node: Node, lines: Mapping[int, Line], store: str) -> None:
        self._node, self._lines, self._store = node, lines, store
        self._number = 0

    def together(self, groups: Sequence[tuple[int, ...]], deadline: float) -> dict[int, NetworkReport]:
        """Return the report of each node on an all-reduce of its group, all groups at once."""
        seconds, mine, numbers = deadline - time.monotonic(), None, {}
        for members in groups:
            self._number += 1
            for place, rank in enumerate(members):
                order: dict[str, Any] = {
                    "place": place,
                    "members": len(members),
                    "store": f"{self._store}/{self._number}",
                }
                if rank == 0:
                    mine = order
                else:
                    numbers[rank] = self._number
                    self._lines[rank].send({"do": "together", "number": self._number, "seconds": seconds, **order})
        found = {}
        with ThreadPoolExecutor(1) as pool:
            own = pool.submit(self._node.together, **mine, deadline=deadline) if mine else None
            for rank, number in numbers.items():
                found[rank] = self._network_answer(rank, number, deadline)
            if own is not None:
                found[0] = own.result()
        return found

    def _network_answer(self, rank: int, number: int, deadline: float) -> NetworkReport:
        try:
            return NetworkReport.model_validate(_answer(self._lines[rank], number, deadline))
        except Silence:
            return NetworkReport(problem="no answer")
        except ValidationError:
            return NetworkReport(problem="an answer that makes no sense")


def _find_by_pairs(group: _Group, verdict: Verdict, start: Start, end: float) -> None:
    """Name the nodes with a network that fails: in pairs first, then each suspect with a node known to be good."""
    ranks = list(range(start.nodes))
    first = pairs(ranks)
    outcome = _outcome(group.together(first, min(time.monotonic() + ROUND_S, end)), first)
    good = [rank for pair in first if outcome[pair] is None for rank in pair]
    if not good:
        problem = next(iter(outcome.values()))
        shown = ", ".join(f"{start.names[a]} and {start.names[b]}" for a, b in first)
        verdict.nobody = f"no pair of nodes can sum a tensor ({shown}): {problem}"
        return
    suspects = [rank for rank in ranks if rank not in good]
    while suspects and end - time.monotonic() > ROUND_S / 2:
        now = against_good(suspects, good)
        outcome = _outcome(group.together(now, min(time.monotonic() + ROUND_S, end)), now)
        for suspect, other in now:
            suspects.remove(suspect)
            problem = outcome[suspect, other]
            if problem is not None:
                verdict.bad[suspect] = [
                    f"an all-reduce with {start.names[other]}, which is well with others: {problem}"
                ]
    if suspects:
        shown = ", ".join(start.names[rank] for rank in suspects)
        verdict.warnings.append(f"there was no time to test the network of {shown} again")


def _outcome(
    found: Mapping[int, NetworkReport], groups: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], str | None]:
    """Return why each pair failed, or None; a pair that is much slower than the others has failed."""
    rates = {
        pair: min(rate for rank in pair if (rate := found[rank].network_gb_s) is not None)
        for pair in groups
        if all(found[rank].network_gb_s is not None for rank in pair)
    }
    usual = median_high(rates.values()) if rates else 0.0
    outcome: dict[tuple[int, int], str | None] = {}
    for pair in groups:
        problem = next((found[rank].problem for rank in pair if found[rank].problem), None)
        if problem is None and rates.get(pair, 0.0) < EXPECTED * usual:
            problem = f"{rates.get(pair, 0.0):.3g} GB/s, the median of the pairs is {usual:.3g}"
        outcome[pair] = problem
    return outcome


def _finding(verdict: Verdict, start: Start, left: int, requeue: bool) -> RuntimeFinding | None:
    """Return the finding of a verdict; None if training may start."""
    if verdict.passed:
        return None
    if verdict.nobody is not None and not verdict.excluded:
        return RuntimeFinding(
            "R620",
            f"the network between the nodes fails, and no single node is to blame: {verdict.nobody}",
            f"nodes: {', '.join(start.names)}",
            "ask the site, or submit the job to other nodes",
        )
    silent = [start.names[rank] for rank in verdict.silent]
    lines = [f"{start.names[rank]}: {reason}" for rank, reasons in sorted(verdict.bad.items()) for reason in reasons]
    lines += [f"{name}: did not answer" for name in silent]
    note = "\n".join(lines)
    names = ",".join(start.names[rank] for rank in verdict.excluded)
    if len(verdict.excluded) > left:
        return RuntimeFinding(
            "R621",
            f"{counted(len(verdict.excluded), 'node')} of this job {'is' if len(verdict.excluded) == 1 else 'are'} not"
            f" healthy, and {max(left, 0)} more may be left out",
            note,
            f"tell the site, submit the job with --exclude={names}, or raise `max_excluded_nodes` and compile again",
        )
    after = "the job is requeued without" if requeue else "submit the job again without"
    what = "it" if len(verdict.excluded) == 1 else "them"
    if verdict.bad:
        message = f"{counted(len(verdict.excluded), 'node')} of {start.nodes} not healthy: {names}"
        return RuntimeFinding("R617", message, note, f"tell the site; {after} {what}")
    message = f"{counted(len(silent), 'node')} of {start.nodes} did not answer in the check of health: {names}"
    return RuntimeFinding("R618", message, note, f"tell the site; {after} {what}")
