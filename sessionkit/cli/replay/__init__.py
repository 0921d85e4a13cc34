"""Replay an access log, to see what a session timeout and a limit would do."""
