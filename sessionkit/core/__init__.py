"""Sessions in memory; knows no store."""
