"""The same requests through distilabel, in a separate environment:
`python peer_distilabel.py URL SLOTS < prompts.json`."""

import json
import sys
import time


def main() -> None:
    from distilabel.models import OpenAILLM  # pyright: ignore[reportMissingImports]
    from distilabel.pipeline import Pipeline  # pyright: ignore[reportMissingImports]
    from distilabel.steps import LoadDataFromDicts  # pyright: ignore[reportMissingImports]
    from distilabel.steps.tasks import TextGeneration  # pyright: ignore[reportMissingImports]

    url, slots = sys.argv[1], int(sys.argv[2])
    rows = [{"instruction": prompt} for prompt in json.load(sys.stdin)]
    with Pipeline("bench", enable_metadata=False) as pipeline:  # pyright: ignore[reportCallIssue]
        load = LoadDataFromDicts(data=rows, batch_size=slots)
        llm = OpenAILLM(
            model="bench", base_url=url, api_key="no-real-key-1234567890", generation_kwargs={"max_new_tokens": 320}
        )
        load.connect(TextGeneration(llm=llm, input_batch_size=slots))
    started = time.monotonic()
    dataset = pipeline.run(use_cache=False)
    seconds = time.monotonic() - started
    answers = sum(row["generation"] is not None for row in dataset["default"]["train"])
    print("RESULT " + json.dumps({"seconds": seconds, "answers": answers}))


if __name__ == "__main__":
    main()
