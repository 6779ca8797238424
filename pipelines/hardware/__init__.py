"""What this machine has: processors, memory, CUDA devices."""
