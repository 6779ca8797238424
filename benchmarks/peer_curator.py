"""The same requests through curator, in a separate environment:
`python peer_curator.py URL SLOTS < prompts.json`."""

import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import Any


def main() -> None:
    url, slots = sys.argv[1], int(sys.argv[2])
    # curator would download an encoding to count tokens; one of its dependencies ships the file
    litellm = importlib.util.find_spec("litellm")
    assert litellm is not None and litellm.origin is not None
    os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(litellm.origin).parent / "litellm_core_utils" / "tokenizers")
    os.environ |= {
        "CURATOR_CACHE_DIR": mkdtemp(),
        "TELEMETRY_ENABLED": "false",
        "OPENAI_API_KEY": "no-real-key-1234567890",
    }
    from bespokelabs import curator  # pyright: ignore[reportMissingImports]

    class Writer(curator.LLM):
        def prompt(self, input: dict[str, Any]) -> str:
            return input["instruction"]

        def parse(self, input: dict[str, Any], response: str) -> dict[str, Any]:
            return {"instruction": input["instruction"], "output": response}

    rows = [{"instruction": prompt} for prompt in json.load(sys.stdin)]
    limits = {
        "max_concurrent_requests": slots,
        "max_requests_per_minute": 1_000_000,
        "max_tokens_per_minute": 1_000_000_000,
    }
    writer = Writer(
        model_name="bench",
        backend="openai",
        backend_params={"base_url": url, "api_key": os.environ["OPENAI_API_KEY"], **limits},
        generation_params={"max_tokens": 320},
    )
    started = time.monotonic()
    result = writer(rows)
    seconds = time.monotonic() - started
    print("RESULT " + json.dumps({"seconds": seconds, "answers": len(getattr(result, "dataset", result))}))


if __name__ == "__main__":
    main()
