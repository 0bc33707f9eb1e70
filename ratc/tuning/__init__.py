"""A study: the trials of a spec's ``tuning``. Pure: no I/O."""
