"""The built-in policy."""
