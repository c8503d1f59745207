"""The named question sets inside other people's evaluation harnesses: lmms-eval and lighteval.

A harness has an environment of its own with its own versions. It needs this package's files there, and none of its
dependencies: the checkpoint is loaded by plain transformers with the code that travels with it.
"""
