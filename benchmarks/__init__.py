"""How fast sessionkit is, beside what people use instead: `make bench`, or `make bench-quick`."""
