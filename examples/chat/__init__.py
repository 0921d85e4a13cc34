"""Candlelight: a small Flask chat whose partners are live objects, kept as the resources of sessions."""
