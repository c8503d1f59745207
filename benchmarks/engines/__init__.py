"""Engines compared with our own forward pass, each run in an environment of its own."""
