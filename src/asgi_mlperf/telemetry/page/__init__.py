"""The built-in page: what happens in this worker just now."""
