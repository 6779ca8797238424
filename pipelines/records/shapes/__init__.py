"""The shapes of instruction data.

Each is mapped to instruction, input, output and messages, with notes on unused parts.
"""
