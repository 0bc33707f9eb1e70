"""The rendezvous at the head node: names that do not resolve, and names that resolve to the node itself."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from ratc_runtime import meeting
from ratc_runtime.errors import RuntimeFinding


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The name service of this node."""
    known: dict[str, list[str]] = {}

    def look_up(host: str, *_: Any, **__: Any) -> list[Any]:
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(0, 0, 0, "", (address, 0)) for address in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket, "gethostname", lambda: "n2")
    return known


@pytest.mark.parametrize("rank", [0, 1])
def test_r563_for_an_unknown_head_on_every_node(names: dict[str, list[str]], rank: int) -> None:
    with pytest.raises(RuntimeFinding, match="R563") as caught:
        meeting.check("n1", 12000, rank, {})
    assert caught.value.message == "the head node n1 cannot be resolved on the node n2"


@pytest.mark.parametrize("addresses", [["10.0.0.1"], ["fe80::1%eth0"], ["127.0.1.1", "10.0.0.1"]])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_reachable_address_of_the_head_is_accepted(
    names: dict[str, list[str]], addresses: list[str], rank: int, capsys: pytest.CaptureFixture[str]
) -> None:
    names["n1"] = addresses
    meeting.check("n1", 12000, rank, {}, patience=0)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("address", ["127.0.1.1", "127.0.0.1", "::1"])
def test_r564_if_the_head_resolves_to_loopback_on_another_node(names: dict[str, list[str]], address: str) -> None:
    names["n1"] = [address]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(RuntimeFinding, match="R564") as caught:
            meeting.check("n1", port, 1, {}, patience=0)
        assert f"stands for the loopback address {address} on the node n2" in caught.value.message
        # Where the head is this very machine, it listens.
        free.listen()
        meeting.check("n1", port, 1, {}, patience=0)


def test_a_loopback_head_gives_a_warning_unless_an_interface_is_set(
    names: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    names["n2"] = ["127.0.1.1"]
    meeting.check("n2", 12000, 0, {"GLOO_SOCKET_IFNAME": "ib0"})
    assert capsys.readouterr().err == ""
    meeting.check("n2", 12000, 0, {})
    said = capsys.readouterr().err
    assert said.startswith("warning: n2 stands for the loopback address 127.0.1.1 on n2")
    assert "`interface: ib0`" in said


def test_a_lost_rank_names_its_own_loopback_address(
    names: dict[str, list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ratc_runtime import train

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    names["n2"] = ["127.0.1.1"]

    def lost() -> str:
        finding = RuntimeFinding("R514", "rank 1 has lost the other processes", "connection refused", everywhere=False)
        train.report_error(finding, finding, None)
        return capsys.readouterr().err

    assert "127.0.1.1" in lost()
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    assert "127.0.1.1" not in lost()


def test_the_command_prints_a_code_and_returns_1() -> None:
    import os
    import subprocess
    import sys
    from pathlib import Path

    runtime = Path(meeting.__file__).parents[1]
    command = [sys.executable, "-m", "ratc_runtime.meeting", "no-such-host.invalid", "12000", "1"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(runtime)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error[R563]: ")
    assert "Traceback" not in done.stderr
