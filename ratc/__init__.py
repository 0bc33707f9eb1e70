"""ratc: a declarative-spec compiler for deep-learning training."""

__version__ = "0.1.0"
