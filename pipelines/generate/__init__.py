"""SFT data from language models: a topic grid, prompts, a journal of all requests, and the clients
of the providers."""
