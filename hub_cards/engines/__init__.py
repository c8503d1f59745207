"""Entry points of engines that load plugins. Each module imports its engine and nothing else."""
