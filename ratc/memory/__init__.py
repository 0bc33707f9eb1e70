"""Peak GPU memory of a training step, from its trace: pure arithmetic, no torch, no files.

`docs/reference/trace.md` is the input.
"""
