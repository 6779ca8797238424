"""What happens to the data: generate → clean → train → evaluate → compare, in plain Python."""
