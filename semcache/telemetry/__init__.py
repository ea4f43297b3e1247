"""Observers that ship with the package, one system a file."""
