"""Scores of answers against references, with bootstrap confidence intervals.

``exact_match`` and ``rouge_l`` are means of values from 0 to 1; ``bleu`` is corpus BLEU from 0 to 100 (sacrebleu).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner.programs.lib.events import ProgramError

if TYPE_CHECKING:
    import numpy as np

METRICS = ("exact_match", "rouge_l", "bleu")
#: Raised whenever a score would come out differently for the same answers: scores of unlike versions are not ranked.
METRICS_VERSION = 1
NUM_RESAMPLES = 1000
BOOTSTRAP_SEED = 20_240_229
CONFIDENCE_PERCENTILES = (2.5, 97.5)

#: Han, kana and hangul: written without spaces, so every character counts as a word.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_ROUGE_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_HAS_CJK = re.compile(f"[{_CJK}]")


@dataclass(frozen=True, slots=True)
class Score:
    """One metric over all samples: its value, the 95 % interval of the value, and the value of each sample."""

    value: float
    interval: tuple[float, float]
    per_sample: list[float]


def score_answers(metric: str, answers: Sequence[str], references: Sequence[str]) -> Score:
    """Score answers against references of the same length. Raises ProgramError unless every sample has a value."""
    scorer = {"exact_match": _mean_of(exact_match), "rouge_l": _mean_of(_rouge_l_scorer()), "bleu": _bleu}[metric]
    score = scorer(answers, references)
    numbers = [score.value, *score.interval, *score.per_sample]
    if len(score.per_sample) != len(references) or not all(map(math.isfinite, numbers)):
        raise ProgramError(
            "score_missing",
            f"{metric} has a value for {sum(map(math.isfinite, score.per_sample))} of {len(references)} samples; "
            "an evaluation counts only when every sample is scored.",
            field="metrics",
        )
    return score


def exact_match(answer: str, reference: str) -> float:
    """1.0 where both are equal after stripping and collapsing white space to single spaces; case counts."""
    return float(" ".join(answer.split()) == " ".join(reference.split()))


def bleu_tokenizer(references: Sequence[str]) -> str:
    """sacrebleu's tokenizer: ``zh`` as soon as a reference holds Chinese characters, else its default ``13a``."""
    return "zh" if any(_HAS_CJK.search(reference) for reference in references) else "13a"


class RougeTokenizer:
    """Lower-case words, and single characters where a script has no spaces (rouge-score drops those altogether)."""

    def tokenize(self, text: str) -> list[str]:
        """The words of a text; punctuation does not count."""
        return _ROUGE_WORD.findall(text.lower())


def _rouge_l_scorer() -> Callable[[str, str], float]:
    # Late: rouge-score imports nltk.
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=RougeTokenizer())
    return lambda answer, reference: float(scorer.score(reference, answer)["rougeL"].fmeasure)


def _mean_of(score_one: Callable[[str, str], float]) -> Callable[[Sequence[str], Sequence[str]], Score]:
    def score(answers: Sequence[str], references: Sequence[str]) -> Score:
        import numpy as np

        values = [score_one(answer, reference) for answer, reference in zip(answers, references, strict=True)]
        array = np.asarray(values)
        return Score(float(array.mean()), _interval(lambda rows: float(array[rows].mean()), len(values)), values)

    return score


def _bleu(answers: Sequence[str], references: Sequence[str]) -> Score:
    """Corpus BLEU; n-gram counts are taken once per sample, so a resample is a sum."""
    import numpy as np
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU(tokenize=bleu_tokenizer(references), effective_order=True)
    samples = [bleu.sentence_score(a, [r]) for a, r in zip(answers, references, strict=True)]
    counts = np.asarray([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in samples])

    def corpus_bleu(rows: Any) -> float:
        summed = counts[rows].sum(axis=0).tolist()
        return float(BLEU.compute_bleu(summed[:4], summed[4:8], summed[8], summed[9], smooth_method="exp").score)

    value = corpus_bleu(slice(None))
    return Score(value, _interval(corpus_bleu, len(samples)), [float(sample.score) for sample in samples])


def _interval(statistic: Callable[[np.ndarray[Any, Any]], float], num_samples: int) -> tuple[float, float]:
    """Percentile bootstrap: the statistic over samples drawn with replacement, always with the same seed."""
    import numpy as np

    generator = np.random.default_rng(BOOTSTRAP_SEED)
    values = [statistic(generator.integers(0, num_samples, num_samples)) for _ in range(NUM_RESAMPLES)]
    low, high = np.percentile(values, CONFIDENCE_PERCENTILES)
    return float(low), float(high)
