"""The cause of a job's end, from its files and its scheduler's record, with the evidence for it."""
