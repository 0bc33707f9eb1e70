"""The processes of a run: ranks, stop requests, heartbeats, and the watchdog that ends a run that hangs."""
