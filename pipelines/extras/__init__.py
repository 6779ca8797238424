"""Optional features: exporting results for other programs, and searching settings.

Nothing outside imports from here. Each package defines its commands as `STAGES` in its module
`commands`. pipelines/cli/stages.py finds them by scanning this folder.
"""
