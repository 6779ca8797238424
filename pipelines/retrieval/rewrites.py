"""Multi-query: the answering model first rewrites the question, and each wording is a query of its
own."""

import re

COUNT = 3
# Tokens of the answer that holds the wordings.
MAX_TOKENS = 160
# Characters of one wording.
MOST_CHARS = 500
PROMPT = (
    "Write {count} different search queries that would find information needed for the question below. Use its language, one query "
    "a line, and nothing else.\n\nQuestion: {question}"
)
# Characters of the question that the prompt shows.
MOST_QUESTION = 2000
# Numbers, bullets and labels in front of a wording.
_LIST_MARK = re.compile(r"^\s*(?:[-*•·>]+|\(?\d{1,2}[.):]|query\s*\d*:|검색어\s*\d*:)+\s*", re.IGNORECASE)


def prompt(question: str) -> str:
    """The prompt that asks the model for other wordings."""
    return PROMPT.format(count=COUNT, question=question[:MOST_QUESTION])


def wordings(question: str, answer: str) -> list[str]:
    """The question itself, then at most COUNT other wordings from the model's answer.

    These are its first non-empty lines, without numbers and bullets in front. Whatever the model
    answers is used as it is; without an answer, the question is the only query.
    """
    queries = [question]
    for line in answer.splitlines():
        wording = _LIST_MARK.sub("", line).strip().strip('"“”`').strip()[:MOST_CHARS]
        if wording and wording not in queries:
            queries.append(wording)
        if len(queries) > COUNT:
            break
    return queries
