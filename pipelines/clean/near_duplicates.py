"""Near-duplicates in SQL: character 3-shingles, MinHash signatures, LSH bands, then the exact Jaccard of each candidate.

MinHash and banding: Broder (1997), Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3. With 25 bands of
5 minima a pair of Jaccard 0.85 becomes a candidate with probability 1 - (1 - 0.85^5)^25 > 0.999999; a lower threshold takes
more and narrower bands, so that it is as sure.
"""

import duckdb

SHINGLE = 3
MINIMA = 125
MOST_ROWS = 5
MISSED = 1e-6  # at most this share of the pairs that lie just at the threshold
PRIME = 2_147_483_647  # a Mersenne prime: h -> (a·h + b) mod p permutes 0..p-1


def near_duplicate_pairs(db: duckdb.DuckDBPyConnection, *, table: str, jaccard: float) -> list[tuple[str, str, float]]:
    """Pairs (record_id, record_id, Jaccard ≥ `jaccard`) among the rows of `table` (columns record_id, normalized)."""
    db.execute(f"""
        CREATE OR REPLACE TEMP TABLE shingles AS
        SELECT record_id, list_sort(list_distinct(list_transform(
            range(1, greatest(length(normalized) - {SHINGLE} + 2, 2)),
            lambda i: hash(substr(normalized, i, {SHINGLE})) % {PRIME}
        ))) AS shingles FROM {table}
    """)
    rows = band_rows(jaccard)
    minima = ", ".join(
        f"list_min(list_transform(shingles, lambda h: ({a} * h + {b}) % {PRIME}))" for a, b in _permutations(MINIMA)
    )
    db.execute(f"CREATE OR REPLACE TEMP TABLE signatures AS SELECT record_id, [{minima}] AS minima FROM shingles")
    db.execute(f"""
        CREATE OR REPLACE TEMP TABLE bands AS
        SELECT record_id, band, hash(list_slice(minima, band * {rows} + 1, (band + 1) * {rows})) AS bucket
        FROM signatures, range({MINIMA // rows}) AS bands(band)
    """)
    return db.execute(
        """
        WITH candidates AS (
            SELECT DISTINCT a.record_id AS one, b.record_id AS other
            FROM bands a JOIN bands b ON a.band = b.band AND a.bucket = b.bucket AND a.record_id < b.record_id
        ), measured AS (
            SELECT one, other, len(list_intersect(a.shingles, b.shingles)) AS common,
                   len(a.shingles) + len(b.shingles) AS total
            FROM candidates JOIN shingles a ON a.record_id = one JOIN shingles b ON b.record_id = other
        )
        SELECT one, other, common / (total - common) AS jaccard FROM measured
        WHERE common / (total - common) >= ? ORDER BY one, other
        """,
        [jaccard],
    ).fetchall()


def band_rows(jaccard: float) -> int:
    """The most minima a band may have for the bands of a signature to miss hardly a pair of this Jaccard."""
    return next(
        rows for rows in range(MOST_ROWS, 0, -1) if rows == 1 or (1 - jaccard**rows) ** (MINIMA // rows) < MISSED
    )


def _permutations(count: int) -> list[tuple[int, int]]:
    """Fixed multipliers and offsets of `count` hash functions (a linear congruential sequence, so the same everywhere)."""
    values, state = [], 12345
    for _ in range(2 * count):
        state = (1103515245 * state + 12345) % 2**31
        values.append(state % (PRIME - 1) + 1)
    return list(zip(values[::2], values[1::2], strict=True))


def clusters(pairs: list[tuple[str, str, float]]) -> dict[str, str]:
    """Each record in a pair → a name of its cluster (union-find; the name is the smallest record_id in it)."""
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for one, other, _ in pairs:
        first, second = sorted((root(one), root(other)))
        parent[second] = first
    return {node: root(node) for node in parent}
