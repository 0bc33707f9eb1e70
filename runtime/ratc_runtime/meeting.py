"""The check that this node can reach the head node: `python -m ratc_runtime.meeting HEAD PORT RANK`.

A launcher that cannot resolve a name retries for minutes and then blames another node. This check takes a second, and
names the node. It uses only the standard library.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from ratc_runtime.errors import RuntimeFinding, warn

#: Seconds to wait for the head to listen on a loopback address, which it can do only on this machine.
PATIENCE = 180.0
#: Variables that name the network interface to the libraries that carry tensors.
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
#: Of a listening socket in /proc/net/tcp (include/net/tcp_states.h).
_LISTEN = "0A"


def addresses(host: str) -> list[str]:
    """Return this node's addresses for a host; raise R563 if there are none."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        here = socket.gethostname()
        raise RuntimeFinding(
            "R563",
            f"the head node {host} cannot be resolved on the node {here}",
            f"{error.strerror or error}; the nodes of a job meet at its first one, by this name",
            f"ask the site why `getent hosts {host}` finds nothing on {here}, and leave that node out until then",
        ) from None
    return sorted({str(entry[4][0]) for entry in found})


def loopback(host: str) -> str | None:
    """Return the loopback address that a host's name resolves to here; None for another address, or none."""
    try:
        found = addresses(host)
    except RuntimeFinding:
        return None
    # Of an IPv6 address, without the zone that follows %.
    alone = [one for one in found if ipaddress.ip_address(one.partition("%")[0]).is_loopback]
    return alone[0] if len(alone) == len(found) else None


def loopback_sentence(host: str, address: str) -> str:
    """Return a sentence about a name that resolves to a loopback address."""
    return (
        f"{host} stands for the loopback address {address} on {socket.gethostname()}, which other nodes cannot reach:"
        " name the network interface in the cluster's facts (`interface: ib0`)"
    )


def check(host: str, port: int, rank: int, environment: Mapping[str, str], patience: float = PATIENCE) -> None:
    """Raise R563 if this node cannot resolve the head, R564 if it resolves the head to itself and is not the head.

    The head itself may resolve its own name to a loopback address: that is a warning if no interface is named.
    """
    addresses(host)
    address = loopback(host)
    if address is None:
        return
    if rank == 0:
        if not any(environment.get(name) for name in INTERFACES):
            warn(loopback_sentence(host, address))
        return
    end = time.monotonic() + patience
    while not listens(port):
        if time.monotonic() > end:
            raise RuntimeFinding(
                "R564",
                f"the head node {host} stands for the loopback address {address} on the node {socket.gethostname()}",
                f"nothing listens on port {port} of this node: the head is another machine",
                "correct the name in /etc/hosts or in the site's name service; if the head has several networks, name"
                " the right one in the cluster's facts (`interface: ib0`)",
            )
        time.sleep(0.5)


def listens(port: int) -> bool:
    """Return whether a process of this machine listens on a TCP port. Connecting would disturb it."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, _, state, *_ = line.split()
            if state == _LISTEN and int(local.rpartition(":")[2], 16) == port:
                return True
    return False


def main(argv: list[str] | None = None) -> int:
    """Check that this node can reach the head; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m ratc_runtime.meeting", description="Check that this node can reach the head node."
    )
    parser.add_argument("head")
    parser.add_argument("port", type=int)
    parser.add_argument("rank", type=int)
    arguments = parser.parse_args(argv)
    try:
        check(arguments.head, arguments.port, arguments.rank, os.environ)
    except RuntimeFinding as finding:
        print(finding.render(), file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
