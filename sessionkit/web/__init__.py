"""A request's session; `sessionkit.wsgi` and `sessionkit.flask` stand on it."""
