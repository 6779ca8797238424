"""The pipeline of the data: generate → clean → train → evaluate → compare, in plain Python."""
