"""Tests of sessionkit.util."""
