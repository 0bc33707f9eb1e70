"""Adapters of a plan for other trainers, one small file each."""
