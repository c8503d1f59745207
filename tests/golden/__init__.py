"""Every recorded number of the reference implementation against this package."""
