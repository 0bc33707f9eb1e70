"""Names and facts that compiler and runtime both know; tests compare the two."""
