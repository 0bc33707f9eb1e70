"""How the tests are spread over the workers of `pytest -n`."""

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

_SLURM = "tests/cluster/slurm/"


class Scheduling(LoadFileScheduling):
    """A file's tests stay in one worker, which has trained the file's run once; so do all tests on Slurm, as one of
    its clusters runs at a time. Those are begun first, then the slow ones, which are collected last: they wait much,
    and no worker has to end with a long file alone."""

    def _split_scope(self, nodeid: str) -> str:
        return _SLURM if nodeid.startswith(_SLURM) else str(super()._split_scope(nodeid))

    def _assign_work_unit(self, node: WorkerController) -> None:
        first = _SLURM if _SLURM in self.workqueue else next(reversed(self.workqueue))
        self.workqueue.move_to_end(first, last=False)
        super()._assign_work_unit(node)
