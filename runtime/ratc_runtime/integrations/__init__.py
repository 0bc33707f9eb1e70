"""How other trainers take over a plan: one small file for each."""
