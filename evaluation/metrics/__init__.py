"""`evaluate` metric modules, one folder each, and what they share. A leaf: nothing else of ours is imported here."""
