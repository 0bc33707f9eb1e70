"""Run a node of a study's job: Ray, and on the first node the study; on the others until the study is over.

Called by the job's `node.sh`: `python -m ratc.cli.ray_node --rank R --head HOST --port P … -- COMMAND`.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from ratc.study.ray_node import Node, run


@click.command(help=__doc__)
@click.option("--rank", type=int, required=True)
@click.option("--head", required=True, help="name of the first node of the job")
@click.option("--port", type=int, required=True)
@click.option("--cpus", type=int, required=True)
@click.option("--gpus", type=int, required=True)
@click.option("--over", required=True, metavar="FILE", help="file that is made when the study is over")
@click.option("--sockets", required=True, metavar="DIR", help="folder for Ray with a short path, for this job only")
@click.option("--log", required=True, metavar="FILE", help="file for the output of Ray")
@click.argument("command", nargs=-1, required=True)
def main(**given: Any) -> None:
    """Exit with the status of `run`."""
    sys.exit(run(Node(**given)))


if __name__ == "__main__":
    main(prog_name="python -m ratc.cli.ray_node")
