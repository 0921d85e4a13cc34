"""Which timeout, which limit: an access log replayed."""
