"""The memory of a training step, followed on fake tensors without a GPU (docs/reference/trace.md).

`python -m ratc_runtime.trace OUTPUT` runs the very step of `step.py` twice at two batch sizes and writes which
bytes live when. Nothing is computed: tensors have shapes and storages but no memory.
"""
