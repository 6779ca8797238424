"""Multi-query: the model that answers first says the question in other words, and each wording is looked up by itself."""

import re

COUNT = 3
MAX_TOKENS = 160  # of the answer that holds them
MOST_CHARS = 500  # of one wording
PROMPT = (
    "Write {count} different search queries that would find information needed for the question below. Use its language, one query "
    "a line, and nothing else.\n\nQuestion: {question}"
)
MOST_QUESTION = 2000  # characters of the question that are shown
_LIST_MARK = re.compile(r"^\s*(?:[-*•·>]+|\(?\d{1,2}[.):]|query\s*\d*:|검색어\s*\d*:)+\s*", re.IGNORECASE)


def prompt(question: str) -> str:
    """What the model is asked for."""
    return PROMPT.format(count=COUNT, question=question[:MOST_QUESTION])


def wordings(question: str, answer: str) -> list[str]:
    """The question itself, then at most three other wordings of what the model answered: its first lines that say something,
    without numbers and dashes before them. A model that answers something else is looked up by what it said; one that says nothing
    leaves the question alone."""
    queries = [question]
    for line in answer.splitlines():
        wording = _LIST_MARK.sub("", line).strip().strip('"“”`').strip()[:MOST_CHARS]
        if wording and wording not in queries:
            queries.append(wording)
        if len(queries) > COUNT:
            break
    return queries
