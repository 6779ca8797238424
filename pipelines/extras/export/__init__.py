"""A result taken out of the project: merged weights, GGUF files for llama.cpp, and what each bit width costs it."""
