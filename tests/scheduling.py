"""How the tests are spread over the workers of `pytest -n`."""

from contextlib import suppress

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

_SLURM = "tests/cluster/slurm/"


class Scheduling(LoadFileScheduling):
    """A file's tests stay in one worker, which has trained the file's run once; so do all tests on Slurm, as one of
    its clusters runs at a time. Those are begun first, then the files with slow tests, which are collected last: they
    wait much, and no worker has to end with a long file alone."""

    def _split_scope(self, nodeid: str) -> str:
        return _SLURM if nodeid.startswith(_SLURM) else str(super()._split_scope(nodeid))

    def _assign_work_unit(self, node: WorkerController) -> None:
        first = _SLURM if _SLURM in self.workqueue else next(reversed(self.workqueue))
        self.workqueue.move_to_end(first, last=False)
        with suppress(OSError):  # a worker that has just died: `remove_node` takes its tests back
            super()._assign_work_unit(node)

    def _reschedule(self, node: WorkerController) -> None:
        """Give a worker tests, at least two if there are: it begins one when it knows which comes next, or that none
        does. xdist sees to that at the start, but not for a worker that replaces a crashed one.
        """
        if node not in self.registered_collections:  # it replaces a crashed one, and has still to collect
            return
        super()._reschedule(node)
        while not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
            super()._reschedule(node)

    def remove_node(self, node: WorkerController) -> str | None:
        """Take back a worker's tests; return the one it crashed in, if any, as run.

        xdist would run it again, in which the next worker crashes, and would wait for files of which no test is left.
        """
        units = self.assigned_work.pop(node).items()
        crashed = next((test for _, unit in units for test, has_run in unit.items() if not has_run), None)
        if crashed is None:
            return None
        for scope, unit in units:
            if crashed in unit:
                unit[crashed] = True
            if not all(unit.values()):
                self.workqueue[scope] = unit
        for other in self.assigned_work:
            self._reschedule(other)
        return crashed
