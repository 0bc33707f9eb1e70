"""The nodes' health before training: the tests of each node, their comparison, and the nodes to leave out."""
