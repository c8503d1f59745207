"""What one GPU shows in four minutes: correctness, speed and memory of the published architecture (docs/gpu.md)."""
