"""Detection by set prediction: a fixed number of queries, each of which finds one object or none."""
