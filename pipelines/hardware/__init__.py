"""The hardware of this machine: processors, memory and CUDA devices."""
