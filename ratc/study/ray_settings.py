"""Ray's settings, for a study on this machine and for the nodes of its job. Imports nothing of Ray."""

#: Ray reads these when it is imported and when it starts. Nothing is sent anywhere; a trial's memory is the trial's own
#: matter: Ray would kill the process that waits for it.
ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
}
#: The same for a Ray that this machine alone uses: it asks for a token, and listens on the loopback interface only. The
#: second variable is the one by which Ray does so on macOS, despite its name.
ALONE = {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
#: Bytes of Ray's object store: no object of size goes through it.
STORE_BYTES = 100 << 20
