"""What one GPU shows in four minutes: correctness, speed and memory of the 14B architecture (docs/gpu.md)."""
