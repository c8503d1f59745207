"""Small models of one task, trained on the same data: what a score of a generalist is to be compared with."""
