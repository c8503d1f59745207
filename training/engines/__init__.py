"""Files that other people's trainers load by path: each imports its engine and transformers, nothing of ours."""
