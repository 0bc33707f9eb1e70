"""The memory of a training step, traced on fake tensors without a GPU (docs/reference/trace.md).

`python -m ratc_runtime.trace OUTPUT` runs the step of `step.py` twice at two batch sizes and writes the lifetime of
every allocation. Nothing is computed: tensors have shapes and storages but no memory.
"""
