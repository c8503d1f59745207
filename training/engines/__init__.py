"""Files that trainers of other people load by their path; each imports its engine and transformers, nothing of ours."""
