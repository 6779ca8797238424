"""Quality scores from plain values: bits per byte, and text similarity of answer and reference, in
Korean and English.

All text scores range from 0 to 100 and come from libraries (sacrebleu, rouge-score, nltk).
Only the splitting into words is our own.
"""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from statistics import fmean
from typing import Any

import sacrebleu

TEXT_SCORES = ("bleu", "chrf", "rouge_l", "meteor")
# Languages whose characters count as words in BLEU.
SPELLED = ("ko", "ja", "zh", "th")
HANGUL = re.compile("[가-힣]")
# Letters and digits of any script.
WORD = re.compile(r"[^\W_]+")


def bits_per_byte(nats: float, completion_bytes: int) -> float:
    """Σ negative log-likelihood of the completions' ordinary tokens / (ln 2 × their UTF-8 bytes).

    This makes models with different tokenizers comparable.
    """
    return nats / (math.log(2) * completion_bytes)


def answer_scores(answer: str, reference: str, language: str | None = None) -> dict[str, float]:
    """Each of TEXT_SCORES for one answer. Without `language`, the reference's letters decide it.

    bleu: sentence BLEU (Papineni 2002) with effective order. chrf: Popović 2015. rouge_l: F1 of the
    longest common subsequence of words (Lin 2004). meteor: exact and stem matches (Banerjee & Lavie
    2005) without synonyms, since WordNet is not shipped.
    """
    answer, reference = _normal(answer), _normal(reference)
    return {
        "bleu": sacrebleu.sentence_bleu(
            _bleu_words(answer, reference, language), [_bleu_words(reference, reference, language)], tokenize="none"
        ).score,
        "chrf": sacrebleu.sentence_chrf(answer, [reference]).score,
        "rouge_l": 100 * _rouge().score(reference, answer)["rougeL"].fmeasure,
        "meteor": 100 * _meteor(words(answer), words(reference)),
    }


def cell_scores(answers: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Each of TEXT_SCORES over all answers (rows with answer, reference, language); None without
    answers.

    BLEU and chrF are corpus scores, in which long answers weigh more. ROUGE-L and METEOR are means
    over the answers.
    """
    if not answers:
        return dict.fromkeys(TEXT_SCORES)
    triples = [(_normal(row["answer"]), _normal(row["reference"]), row.get("language")) for row in answers]
    hypotheses = [_bleu_words(answer, reference, language) for answer, reference, language in triples]
    references = [_bleu_words(reference, reference, language) for _, reference, language in triples]
    return {
        # The texts are already tokenized by language, so that one corpus can hold several
        # languages.
        "bleu": sacrebleu.corpus_bleu(hypotheses, [references], tokenize="none", force=True).score,
        "chrf": sacrebleu.corpus_chrf([one[0] for one in triples], [[one[1] for one in triples]]).score,
        "rouge_l": fmean(row["rouge_l"] for row in answers),
        "meteor": fmean(row["meteor"] for row in answers),
    }


def words(text: str) -> list[str]:
    """Lower-case runs of letters and digits. A Korean word keeps its particles."""
    return WORD.findall(_normal(text).lower())


def spelled(reference: str, language: str | None) -> bool:
    """Whether BLEU compares characters: by the language, else if most letters are Hangul."""
    if language:
        return language in SPELLED
    letters = sum(map(str.isalpha, reference))
    return len(HANGUL.findall(reference)) > letters / 2


def _normal(text: str) -> str:
    """Unicode NFC: a model may write Hangul as separate letters."""
    return unicodedata.normalize("NFC", text)


def _bleu_words(text: str, reference: str, language: str | None) -> str:
    """The words of sacrebleu's tokenizer `char` or `13a`, joined by spaces."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
    from sacrebleu.tokenizers.tokenizer_char import TokenizerChar

    return (TokenizerChar() if spelled(reference, language) else Tokenizer13a())(text)


class _Words:
    """A tokenizer for rouge-score, whose default drops Hangul."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Words())


class _NoSynonyms:
    """A stand-in for WordNet, which nltk would have to download."""

    def synsets(self, _word: str) -> list[Any]:
        return []


def _meteor(answer: list[str], reference: list[str]) -> float:
    from nltk.translate.meteor_score import single_meteor_score

    no_synonyms: Any = _NoSynonyms()
    return single_meteor_score(reference, answer, wordnet=no_synonyms)
