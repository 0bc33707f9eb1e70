"""Studies: their trials, who runs them, and what is kept in their folder."""
