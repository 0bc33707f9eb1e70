"""TensorBoard: event files in the output folder."""

from __future__ import annotations

import json
from typing import Any

from ratc_runtime.tracking.interface import Backend, Record


class TensorBoard(Backend):
    """Curves, the lock as text, and at the end its values with the run's scores for the table of hyperparameters."""

    name = "TensorBoard"
    switch = "tensorboard"
    patience = 60.0  # a local disk

    def load(self) -> None:
        """Import TensorBoard."""
        import torch.utils.tensorboard  # noqa: F401

    def open(self) -> None:
        """Open the event file. Points after the checkpoint that this start continues are purged."""
        from torch.utils.tensorboard import SummaryWriter

        first = self.about.first_step
        self._last: dict[str, float] = {}
        self._writer: Any = SummaryWriter(str(self._folder), purge_step=first + 1 if first else None)
        text = json.dumps(self.about.config, indent=2, default=str)
        self._writer.add_text("lock", "\n".join(f"    {line}" for line in text.splitlines()), first)

    @property
    def _folder(self) -> Any:
        return self.about.output_dir / "tensorboard"

    def send(self, records: list[Record]) -> None:
        """Write the records that TensorBoard can show."""
        for record in records:
            if record["kind"] == "metrics":
                for name, value in record["values"].items():
                    self._writer.add_scalar(name, value, record["step"], walltime=record["time"] / 1000)
                    self._last[name] = value
            elif record["kind"] == "status" and record["status"] == "FINISHED":
                self._hyperparameters()
        self._writer.flush()

    def _hyperparameters(self) -> None:
        """Write the summaries of `SummaryWriter.add_hparams` into this run instead of a separate folder."""
        from torch.utils.tensorboard.summary import hparams

        chosen = ("model.", "training.", "data.", "engine.", "seed")
        values = {name: value for name, value in self.about.params.items() if name.startswith(chosen)}
        scores = {name: value for name, value in self._last.items() if name.startswith(("test/", "val/"))}
        for summary in hparams(values, scores):
            self._writer.file_writer.add_summary(summary)

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()

    def describe(self) -> str:
        """Return the folder."""
        return f"TensorBoard: {self._folder}"
