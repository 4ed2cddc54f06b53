"""The native device: compiled schedules on a pool of threads."""
