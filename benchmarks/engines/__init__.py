"""Checks of the integrations with other people's engines, each in an environment of its own.

A check runs the engine's own command and writes a card to `benchmarks/results/engines/`.
"""
