"""Sessions in memory and in a store: the only package that knows both."""
