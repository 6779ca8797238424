"""The shapes of instruction data: each is read into instruction, input, output and messages, and says what it left out."""
