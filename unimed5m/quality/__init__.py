"""Quality control of UniMed-5M records: coarse filter, alignment, duplicates and leakage, expert audit."""
