"""Detection by set prediction: each of a fixed number of queries finds one object or none."""
