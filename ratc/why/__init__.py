"""The cause of a job's end, from its files and its scheduler's account, with the evidence for it."""
