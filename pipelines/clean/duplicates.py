"""Which of several equal or similar records stays: every remaining record gets a rank and a side,
every duplicate a verdict.

`_rank` defines the order. Each side of the split is searched for duplicates by itself. A train
record too close to an eval record is contamination, and the train record is dropped. So the eval
records never depend on the train records.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipelines.clean.comparable import comparable_in_sql, group_in_sql
from pipelines.clean.index import TextIndex
from pipelines.clean.near_duplicates import Twins, near_duplicates, too_close
from pipelines.clean.read import CORPUS, NEVER_EVALUATED
from pipelines.clean.rules import quoted
from pipelines.clean.shared_text import COMPARED, SharedText, find_shared
from pipelines.clean.shingles import Indexes
from pipelines.clean.work import Work
from pipelines.settings.cleaning import Cleaning

# Texts held in memory at once.
RANGE = 20_000
ALIKE = "format('like {} (Jaccard {:.3f})', record_id, jaccard)"
THROUGH = "format('like {} through others of its cluster (Jaccard {:.3f})', record_id, jaccard)"
LEAKS = "format('like eval record {} (Jaccard {:.3f})', record_id, jaccard)"


def reject_duplicates(work: Work, settings: Cleaning) -> None:
    """Fill the table `ranked` (n, record_id, side, …) and add a verdict for every duplicate and
    every leak."""
    _rank(work, settings)
    _reject_exact_duplicates(work)
    work.db.execute("""
        CREATE TABLE places AS
        SELECT row_number() OVER (ORDER BY rank) - 1 AS place, n, record_id, side, asked_key
        FROM ranked ANTI JOIN verdicts USING (n)
    """)
    (texts,) = work.one("SELECT count(*) FROM places")
    jaccard = settings.near_duplicate_jaccard
    shared = find_shared(work)
    with TextIndex(work.folder, texts=texts, jaccard=jaccard, threads=work.threads) as index:
        index.fill(_ranges(work, shared))
        _reject(work, "near_duplicate", near_duplicates(index, _places(work, "eval")), jaccard)
        _reject_repeated_questions(work)
        _reject(work, "contamination", too_close(index, _places(work, "train"), _places(work, "eval")), jaccard)
        _reject(work, "near_duplicate", near_duplicates(index, _places(work, "train")), jaccard)


def _rank(work: Work, settings: Cleaning) -> None:
    """Give each record that the rules left its side of the split and its rank.

    Order: eval before train; the corpus before files before model output; the longest output; the
    smallest id. A record's place in this order does not depend on other records.
    """
    never = ", ".join(quoted(source) for source in NEVER_EVALUATED)
    group = group_in_sql("coalesce(topic, asked)")
    share = f"('0x' || substr(md5(format('{{}}|{{}}', $seed, {group})), 1, 13))::UBIGINT / 16.0**13"
    question = "CASE WHEN compared IS NULL THEN asked ELSE trim(left(compared, length(compared) - answer_chars)) END"
    work.db.execute(
        f"""
        CREATE TABLE ranked AS
        WITH sided AS (
            SELECT n, content_hash, source, length(output) AS chars, md5_number({comparable_in_sql("normalized")}) AS text_key,
                   md5_number({comparable_in_sql(f"({question})")}) AS asked_key,
                   CASE WHEN source IN ({never}) THEN 'train' WHEN fixed_side IS NOT NULL THEN fixed_side
                        WHEN {share} < $share THEN 'eval' ELSE 'train' END AS side,
                   format('{{}}-{{}}', content_hash, row_number() OVER (PARTITION BY content_hash ORDER BY n)) AS record_id
            FROM staged
        )
        SELECT n, record_id, side, text_key, asked_key, row_number() OVER (ORDER BY
            side, CASE WHEN source = '{CORPUS}' THEN 0 WHEN source IN ({never}) THEN 2 ELSE 1 END, chars DESC, record_id) AS rank
        FROM sided
    """,
        {"seed": settings.split_seed, "share": settings.eval_share},
    )


def _reject_exact_duplicates(work: Work) -> None:
    work.db.execute("""
        INSERT INTO verdicts
        SELECT n, 'exact_duplicate', 'same as ' || kept, kept, 1.0
        FROM (SELECT n, record_id, first_value(record_id) OVER (PARTITION BY side, text_key ORDER BY rank) AS kept
              FROM ranked ANTI JOIN verdicts USING (n))
        WHERE record_id <> kept
    """)


def _reject_repeated_questions(work: Work) -> None:
    """Reject train records with the same question as an eval record: they leak it, whatever they
    answer."""
    work.db.execute("""
        INSERT INTO verdicts
        SELECT train.n, 'contamination', 'asks what eval record ' || eval.record_id || ' asks', eval.record_id, NULL
        FROM (SELECT * FROM places ANTI JOIN verdicts USING (n) WHERE side = 'train') AS train
        JOIN (SELECT asked_key, arg_min(record_id, place) AS record_id FROM places ANTI JOIN verdicts USING (n)
              WHERE side = 'eval' GROUP BY asked_key) AS eval USING (asked_key)
    """)


def _ranges(work: Work, shared: SharedText) -> Iterator[tuple[Indexes, list[str]]]:
    """Places and their compared texts: without system prompts and without text that many records of
    a source share."""
    rows = work.db.sql(f"""
        SELECT place, source, {COMPARED} AS text, length({comparable_in_sql("right(coalesce(compared, normalized), answer_chars)")})
            AS answer_chars
        FROM places JOIN staged USING (n)
    """).to_arrow_reader(RANGE)
    for batch in rows:
        if batch.num_rows:
            sources, texts, answers = (batch.column(name).to_pylist() for name in ("source", "text", "answer_chars"))
            yield batch.column("place").to_numpy(), shared.compared(sources, texts, answers)


def _places(work: Work, side: str) -> Indexes:
    """Places of the remaining records of a side, best first."""
    query = "SELECT place FROM places ANTI JOIN verdicts USING (n) WHERE side = $side ORDER BY place"
    return work.db.execute(query, {"side": side}).fetchnumpy()["place"].astype(np.int64)


def _reject(work: Work, reason: str, twins: Twins, jaccard: float) -> None:
    work.db.register("twins", pa.table({"place": twins.place, "twin": twins.twin, "jaccard": twins.jaccard}))
    detail = LEAKS if reason == "contamination" else f"CASE WHEN jaccard >= $least THEN {ALIKE} ELSE {THROUGH} END"
    work.db.execute(
        f"""
        INSERT INTO verdicts
        SELECT dropped.n, $reason, {detail.replace("record_id", "kept.record_id")}, kept.record_id, jaccard
        FROM twins JOIN places AS dropped ON dropped.place = twins.place JOIN places AS kept ON kept.place = twins.twin
        WHERE $least > 0
    """,
        {"reason": reason, "least": jaccard},
    )
    work.db.unregister("twins")
