"""SFT data from language models: a topic grid, a prompt, a journal of every request, and the servers that answer."""
