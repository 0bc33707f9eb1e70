"""Studies: their trials, their runners, and the files in their folder."""
