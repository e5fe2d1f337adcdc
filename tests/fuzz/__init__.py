"""Mutations of everything that Bitwright reads, against every verb that reads it: python -m tests.fuzz."""
