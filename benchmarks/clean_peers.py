"""The near-duplicate step of one tool:
`python -m benchmarks.clean_peers ours|datasketch|datatrove FILE THRESHOLD`; prints JSON.

FILE holds {"id", "text"} on each line. The peers run in an environment without this project, so
only `ours` imports it. All use character 3-shingles and drop similar texts.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

Texts = list[tuple[int, str]]


def ours(texts: Texts, threshold: float) -> set[int]:
    import numpy as np

    from pipelines.clean.index import TextIndex
    from pipelines.clean.near_duplicates import near_duplicates

    step = 20_000
    parts = [[text for _, text in texts[start : start + step]] for start in range(0, len(texts), step)]
    with (
        tempfile.TemporaryDirectory() as folder,
        TextIndex(Path(folder), texts=len(texts), jaccard=threshold, threads=2) as index,
    ):
        index.fill((np.arange(i * step, i * step + len(part)), part) for i, part in enumerate(parts))
        duplicates = near_duplicates(index, np.arange(len(texts)))
    return {texts[place][0] for place in duplicates.place.tolist()}


def datasketch(texts: Texts, threshold: float) -> set[int]:
    """MinHashLSH with 128 permutations, candidates checked by their exact Jaccard. Of two similar
    texts the later one is dropped."""
    from datasketch import MinHash, MinHashLSH  # pyright: ignore[reportMissingImports]

    lsh = MinHashLSH(threshold=threshold, num_perm=128)
    held: dict[int, set[str]] = {}
    dropped: set[int] = set()
    for number, text in texts:
        shingles = {text[i : i + 3] for i in range(len(text) - 2)}
        signature = MinHash(num_perm=128)
        signature.update_batch([shingle.encode() for shingle in shingles])
        for other in lsh.query(signature):
            common = len(shingles & held[other])
            if common / (len(shingles) + len(held[other]) - common) >= threshold:
                dropped.add(number)
                break
        else:
            lsh.insert(number, signature)
            held[number] = shingles
    return dropped


def datatrove(texts: Texts, threshold: float) -> set[int]:
    """Its four MinHash steps on one task each. It checks no candidates and splits into words, so
    its n-grams are words."""
    from datatrove.data import Document  # pyright: ignore[reportMissingImports]
    from datatrove.executor import LocalPipelineExecutor  # pyright: ignore[reportMissingImports]
    from datatrove.pipeline.dedup import (  # pyright: ignore[reportMissingImports]
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig  # pyright: ignore[reportMissingImports]
    from datatrove.utils.hashing import HashConfig  # pyright: ignore[reportMissingImports]

    config = MinhashConfig(hash_config=HashConfig(precision=64), num_buckets=14, hashes_per_bucket=8, n_grams=5)
    documents = [Document(text=text, id=str(number)) for number, text in texts]
    remaining: set[int] = set()

    def keep(data: Any, rank: int = 0, world_size: int = 1) -> Any:
        for document in data:
            remaining.add(int(document.id))
            yield document

    with tempfile.TemporaryDirectory() as folder:
        steps = (
            [documents, MinhashDedupSignature(output_folder=f"{folder}/signatures", config=config)],
            [
                MinhashDedupBuckets(
                    input_folder=f"{folder}/signatures", output_folder=f"{folder}/buckets", config=config
                )
            ],
            [MinhashDedupCluster(input_folder=f"{folder}/buckets", output_folder=f"{folder}/clusters", config=config)],
            [documents, MinhashDedupFilter(input_folder=f"{folder}/clusters"), keep],
        )
        for number, step in enumerate(steps):
            tasks = config.num_buckets if number == 1 else 1
            LocalPipelineExecutor(pipeline=step, tasks=tasks, workers=1, logging_dir=f"{folder}/logs-{number}").run()
    return {number for number, _ in texts} - remaining


def main() -> int:
    name, file, threshold = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    lines = [json.loads(line) for line in file.open(encoding="utf-8")]
    texts = [(line["id"], line["text"]) for line in lines]
    began = time.perf_counter()
    dropped = {"ours": ours, "datasketch": datasketch, "datatrove": datatrove}[name](texts, threshold)
    seconds = time.perf_counter() - began
    timing = {"texts": len(texts), "seconds": round(seconds, 2), "texts_per_second": round(len(texts) / seconds)}
    print(json.dumps({**timing, "dropped": sorted(dropped)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
