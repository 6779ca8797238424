"""Export of results: merged weights, GGUF files for llama.cpp, and the cost of each bit width."""
