"""The model: configuration, block rules, network, generation and checkpoint conversion."""
