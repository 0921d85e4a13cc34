"""What stands below everything: validation, clock, fork, logging."""
