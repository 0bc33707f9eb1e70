"""The Python API that commands share: from the files of a spec to plans and artifacts."""
