"""The arguments of `featherweight export`, separate from its heavy imports."""

import argparse

from pipelines.cli.arguments import add_choice

SCHEMES = ("F32", "F16", "Q8_0", "Q4_K_M")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all arguments except model, method and seed."""
    parser.add_argument(
        "--merge", action="store_true", help="a transformers folder (the default without other formats)"
    )
    parser.add_argument("--adapter", action="store_true", help="only the adapter, for PEFT, with a model card")
    add_choice(
        parser,
        "--gguf",
        *SCHEMES,
        nargs="?",
        action="append",
        const="F16",
        about="a file for llama.cpp, at this precision (repeat for more); default: F16",
    )
    parser.add_argument(
        "--ollama", action="store_true", help="a Modelfile beside the GGUF file (F16 unless --gguf names others)"
    )
    parser.add_argument("--output", metavar="DIR", help="default: exports/ of the data folder")
    parser.add_argument(
        "--push", metavar="OWNER/NAME", help="list the upload to this repository of the hub; --yes performs it"
    )
    parser.add_argument("--yes", action="store_true", help="with --push: upload it, private unless --public")
    parser.add_argument("--public", action="store_true", help="with --push: anyone may see the repository")
