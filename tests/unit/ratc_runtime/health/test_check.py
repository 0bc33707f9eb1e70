"""The health check of several nodes, each a thread here, with given test results."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ratc_runtime.config.lock import Lock
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.health import check, record
from ratc_runtime.health.check import Start
from ratc_runtime.health.exchange import Head, Silence, join
from ratc_runtime.health.report import Device, NetworkReport, NodeReport, clipped

from tests.helpers.lockfile import lock_with

KEY = b"key"
HEALTH = {"matrix_tflops": None, "memory_gb_s": None, "network_gb_s": 50.0, "max_excluded_nodes": 2}


class Store:
    """In place of the process that keeps addresses."""

    def __init__(self, *_: str) -> None:
        pass

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def words(self, deadline: float) -> Iterator[dict[str, Any]]:
        yield {"port": 1}


class Nodes:
    """The nodes of a start, what each one's tests give, and how it ends: None, or its finding."""

    def __init__(self, folder: Path, count: int, **health: Any) -> None:
        self.lock: Lock = lock_with(
            folder,
            health={**HEALTH, **health},
            parallel__nodes=count,
            parallel__world_size=count,
            training__global_batch_size=4 * count,
        ).replace(job={"requeue": True})
        self.folder, self.count = folder, count
        self.rates = [1.0] * count
        #: Seconds that a node's own tests take.
        self.takes = [0.0] * count
        #: Why an all-reduce of these ranks fails; None if it does not.
        self.network: Callable[[set[int]], str | None] = lambda members: None
        self.absent: set[int] = set()
        self.ends: dict[int, RuntimeFinding | None] = {}
        self._groups: dict[str, set[int]] = {}
        self._lock = threading.Condition()

    def alone(self, rank: int) -> NodeReport:
        time.sleep(self.takes[rank])
        return NodeReport(host=f"n{rank}", devices=[Device(index=0, matrix_tflops=self.rates[rank])])

    def together(self, rank: int, nodes: int, store: str) -> NetworkReport:
        with self._lock:
            self._groups.setdefault(store, set()).add(rank)
            self._lock.notify_all()
            self._lock.wait_for(lambda: len(self._groups[store]) == nodes, 10)
        problem = self.network(self._groups[store])
        return NetworkReport(network_gb_s=None if problem else 50.0, problem=problem)

    def run(self, id: str = "7.0", patience: float = 10) -> dict[int, str | None]:
        """Check all nodes; return the code that each ends with."""
        with socket.create_server(("", 0)) as free:
            port = free.getsockname()[1]
        names = tuple(f"n{rank}" for rank in range(self.count))
        self._groups.clear()

        def node(rank: int) -> None:
            start = Start(id, id.rpartition(".")[0], rank, self.count, names, "localhost", port, KEY)
            try:
                self.ends[rank] = check.check(self.lock, start, self.folder, patience)
            except RuntimeFinding as finding:
                self.ends[rank] = finding

        there = [rank for rank in range(self.count) if rank not in self.absent]
        threads = [threading.Thread(target=node, args=(rank,)) for rank in there]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        return {rank: None if end is None else end.code for rank, end in sorted(self.ends.items())}

    def excluded(self) -> list[str]:
        """The ranks that the script would leave out."""
        path = self.folder / record.UNHEALTHY
        return path.read_text().split() if path.exists() else []


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Nodes]:
    """Return a function that makes nodes."""

    def made(count: int, **health: Any) -> Nodes:
        nodes = Nodes(tmp_path, count, **health)

        class Node:
            count = 1

            def __init__(self, name: str, *_: object) -> None:
                self.rank = int(name[1:])

            def ready(self, deadline: float) -> None:
                pass

            def close(self) -> None:
                pass

            def alone(self, deadline: float) -> NodeReport:
                return nodes.alone(self.rank)

            def together(self, place: int, members: int, store: str, deadline: float) -> NetworkReport:
                return nodes.together(self.rank, members, store)

        monkeypatch.setattr(check, "Node", Node)
        monkeypatch.setattr(check, "Child", Store)
        return nodes

    return made


def test_healthy_nodes_pass_and_are_recorded(make: Callable[..., Nodes]) -> None:
    nodes = make(3)
    assert nodes.run() == {0: None, 1: None, 2: None}
    assert nodes.excluded() == []
    (entry,) = record.read(nodes.folder)
    assert (entry["passed"], entry["nodes"], entry["job"], entry["bad"]) == (True, ["n0", "n1", "n2"], "7", {})
    found = record.summary(nodes.folder)
    assert found is not None
    assert (found["checks"], found["excluded"]) == (1, {})


def test_a_slow_node_is_named_on_every_node_and_excluded(make: Callable[..., Nodes]) -> None:
    nodes = make(3)
    nodes.rates[1] = 0.1
    assert nodes.run() == {0: "R617", 1: "R617", 2: "R617"}
    assert nodes.excluded() == ["1"]
    assert str(nodes.ends[0]).splitlines() == [
        "error[R617]: 1 node of 3 not healthy: n1",
        "  note: n1: matrix product: 0.1 TFLOPS, the median of all is 1",
        "  help: tell the site; the job is requeued without it",
    ]
    assert "not healthy: n1" in str(nodes.ends[2])
    nodes.rates[1] = 1.0
    assert set(nodes.run("7.1").values()) == {None}
    assert nodes.excluded() == []
    found = record.summary(nodes.folder)
    assert found is not None
    assert (found["checks"], found["excluded"]) == (2, {"n1": 1})


def test_the_head_node_can_be_excluded(make: Callable[..., Nodes]) -> None:
    nodes = make(2)
    nodes.rates[0] = 0.1
    assert nodes.run() == {0: "R617", 1: "R617"}
    assert nodes.excluded() == ["0"]


def test_r618_names_a_node_that_never_connects(make: Callable[..., Nodes]) -> None:
    nodes = make(3)
    nodes.absent = {2}
    assert nodes.run(patience=1.5) == {0: "R618", 1: "R617"}
    assert "1 node of 3 did not answer in the check of health: n2" in str(nodes.ends[0])
    assert nodes.excluded() == ["2"]


def test_a_node_whose_test_exceeds_its_time_counts_as_missing(
    make: Callable[..., Nodes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "ALONE_S", 0.5)
    nodes = make(3)
    nodes.takes[1] = 4
    codes = nodes.run()
    assert codes[0] == "R618"
    assert nodes.excluded() == ["1"]


def test_no_more_nodes_are_excluded_than_the_job_allows(make: Callable[..., Nodes]) -> None:
    nodes = make(4, max_excluded_nodes=2)
    nodes.rates[3] = 0.1
    assert nodes.run("7.0")[0] == "R617"
    nodes.rates = [1.0, 0.1, 0.1, 1.0]
    assert nodes.run("7.1")[0] == "R621"
    assert nodes.excluded() == []
    assert "2 nodes of this job are not healthy, and 1 more may be left out" in str(nodes.ends[0])
    assert "--exclude=n1,n2" in str(nodes.ends[0])
    # Another job has a limit of its own.
    assert nodes.run("8.0")[0] == "R617"
    assert nodes.excluded() == ["1", "2"]


def test_a_node_that_fails_again_is_counted_once(make: Callable[..., Nodes]) -> None:
    nodes = make(3, max_excluded_nodes=1)
    nodes.rates[1] = 0.1
    assert [nodes.run(f"7.{number}")[0] for number in range(3)] == ["R617"] * 3
    assert nodes.excluded() == ["1"]


@pytest.mark.parametrize(
    "report",
    [{"host": "n1\nerror[R617]"}, {"host": "n1", "problems": ["\x1b[2J"]}, {"host": "n1", "more": 1}, [], None],
)
def test_an_invalid_report_counts_as_missing(make: Callable[..., Nodes], report: Any) -> None:
    nodes = make(2)

    class Strange:
        def model_dump(self) -> Any:
            return report

    usual = nodes.alone
    nodes.alone = lambda rank: usual(rank) if rank == 0 else Strange()  # type: ignore[method-assign,assignment,return-value]
    assert nodes.run() == {0: "R618", 1: "R617"}
    assert nodes.excluded() == ["1"]


def test_text_of_a_report_is_clipped_to_one_printable_line() -> None:
    assert clipped("a\n\x1b[2J  b" + "x" * 400) == ("a ?[2J b" + "x" * 400)[:300]
    NodeReport(host=clipped("\x00\n\x7f"))


@pytest.mark.parametrize(("count", "sick"), [(3, {2}), (5, {1}), (5, {4}), (6, {0, 3}), (4, {2, 3})])
def test_pairwise_tests_find_the_node_whose_network_fails(
    make: Callable[..., Nodes], count: int, sick: set[int]
) -> None:
    nodes = make(count)
    nodes.network = lambda members: "hangs: joining the others" if members & sick else None
    assert set(nodes.run().values()) == {"R617"}
    assert nodes.excluded() == [str(rank) for rank in sorted(sick)]
    assert "which is well with others: hangs: joining the others" in str(nodes.ends[0])


def test_r620_blames_no_node_if_the_network_of_two_fails(make: Callable[..., Nodes]) -> None:
    nodes = make(2)
    nodes.network = lambda members: "hangs: joining the others"
    assert nodes.run() == {0: "R620", 1: "R617"}
    assert "no pair of nodes can sum a tensor (n0 and n1)" in str(nodes.ends[0])
    assert nodes.excluded() == []


def test_a_network_that_fails_only_as_a_whole_gives_a_warning(
    make: Callable[..., Nodes], capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = make(4)
    nodes.network = lambda members: "hangs: joining the others" if len(members) > 2 else None
    assert set(nodes.run().values()) == {None}
    told = capsys.readouterr().err
    assert "[R619] an all-reduce among all nodes: hangs: joining the others; each pair of nodes alone is well" in told


def test_a_single_node_skips_the_network_test(make: Callable[..., Nodes]) -> None:
    assert make(1).run() == {0: None}


def test_invalid_lines_of_the_record_are_ignored(tmp_path: Path) -> None:
    (tmp_path / record.FILE).write_text('[]\n{"excluded": "n1"}\n{broken\n\x00\n{"excluded": ["n1"], "job": "7"}\n')
    assert record.excluded_by(tmp_path, "7") == {"n1"}
    assert record.excluded_by(tmp_path, "8") == set()
    record.add(tmp_path, {"job": "8", "excluded": ["n2"]})
    assert [entry["job"] for entry in record.read(tmp_path)] == ["7", "8"]
    (tmp_path / record.FILE).write_text("".join(json.dumps({"excluded": []}) + "\n" for _ in range(300)))
    record.add(tmp_path, {"excluded": []})
    assert len(record.read(tmp_path)) == record.KEPT


def test_the_head_ignores_messages_without_the_key_or_of_another_rank() -> None:
    head = Head(0, KEY, "7.0", 3)
    soon = time.monotonic() + 60  # reached only if the test fails
    try:
        for key, start, rank in ((b"other", "7.0", 1), (KEY, "6.0", 1), (KEY, "7.0", 0), (KEY, "7.0", 3)):
            line = join("localhost", head.port, key, start, rank, soon)
            with pytest.raises(Silence):
                line.receive(soon)  # it is closed
        with socket.create_connection(("localhost", head.port)) as raw:
            raw.sendall(b"       1" + b"x" * 100 + b"\n")
            assert raw.recv(1) == b""
        assert head.lines == {}
        one = join("localhost", head.port, KEY, "7.0", 1, soon)
        while not head.lines and time.monotonic() < soon:
            time.sleep(0.01)  # each line is admitted by a thread
        again = join("localhost", head.port, KEY, "7.0", 1, soon)
        with pytest.raises(Silence):
            again.receive(soon)
        lines = [one, join("localhost", head.port, KEY, "7.0", 2, soon)]
        head.wait(soon)
        assert sorted(head.lines) == [1, len(lines)]
        # Both directions, in order.
        head.lines[1].send({"do": "alone"})
        assert one.receive(soon) == {"do": "alone"}
        one.send({"a": 1})
        one.send({"b": 2})
        assert [head.lines[1].receive(soon), head.lines[1].receive(soon)] == [{"a": 1}, {"b": 2}]
    finally:
        head.stop_listening()
    # The port is free at once, and who comes late finds nobody.
    with pytest.raises(Silence):
        join("localhost", head.port, KEY, "7.0", 2, time.monotonic() + 0.5)
    socket.create_server(("", head.port)).close()


@pytest.mark.parametrize("word", [b"[1]", b"nonsense", b'{"x": ' + b"[" * 100_000])
def test_an_invalid_message_counts_as_no_answer(word: bytes) -> None:
    head = Head(0, KEY, "7.0", 2)
    try:
        soon = time.monotonic() + 60  # reached only if the test fails
        line = join("localhost", head.port, KEY, "7.0", 1, soon)
        head.wait(soon)
        line._socket.sendall(line._code("node 1", 1, word) + b" " + word + b"\n")
        with pytest.raises(Silence):
            head.lines[1].receive(soon)
    finally:
        head.stop_listening()


def test_a_multi_node_start_requires_ratc_health_key(tmp_path: Path) -> None:
    lock = lock_with(tmp_path, parallel__nodes=2, parallel__world_size=2, training__global_batch_size=8, health=HEALTH)
    with pytest.raises(RuntimeFinding, match="RATC_HEALTH_KEY is not set"):
        check.start_of(lock, {}, "7.0", 0, "n0", 1)
    slurm = {"RATC_HEALTH_KEY": "ab", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[4-5]"}
    start = check.start_of(lock, slurm, "7.0", 1, "n4", 1)
    assert (start.names, start.job) == (("n4", "n5"), "7")
    lsf = {"RATC_HEALTH_KEY": "ab", "RATC_HEALTH_JOB": "6.0", "LSB_JOBID": "7", "LSB_MCPU_HOSTS": "l 1 a 4 b 4"}
    start = check.start_of(lock, lsf, "7.0.0", 1, "a", 1)
    assert (start.names, start.job) == (("a", "b"), "6.0")
