"""What the core does without: writing results for other programs, searching settings.

Nothing outside imports from here. Each package brings its own commands: `STAGES` in its module `commands`, which
pipelines/cli/stages.py finds by looking into this folder.
"""
