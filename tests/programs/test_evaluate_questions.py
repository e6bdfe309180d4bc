"""The comparison of models on questions: really generated answers, scores, intervals, and what makes it fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sacrebleu.metrics.bleu import BLEU

from runner.programs.evaluate import metrics, questions
from runner.programs.evaluate.generation import MAX_BATCH_ROWS, MAX_BATCH_TOKENS, Generator, Prompt, batches
from runner.programs.evaluate.metrics import RougeTokenizer, exact_match, score_answers
from runner.programs.lib.events import ProgramError, Reporter, Stopped
from runner.programs.lib.model import choose_device
from runner.programs.lib.render import Renderer
from tests.programs.recipes import QUESTIONS, events_of, make_context, write_rows


@pytest.fixture
def parameters(tmp_path: Path, tiny_model_folder: Path, tiny_adapter_folder: Path) -> dict[str, Any]:
    """Base beside tuned on six questions."""
    return {
        "candidates": [
            {"label": "base", "model": str(tiny_model_folder), "adapter": None},
            {"label": "tuned", "model": str(tiny_model_folder), "adapter": str(tiny_adapter_folder)},
        ],
        "questions": write_rows(tmp_path / "questions.jsonl", QUESTIONS),
        "metrics": ["exact_match", "rouge_l", "bleu"],
        "decoding": {"max_new_tokens": 12},
        "limit": None,
    }


def samples_of(run_folder: Path) -> list[dict[str, Any]]:
    lines = (run_folder / "output" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def scores_of(run_folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((run_folder / "output" / "scores.json").read_text(encoding="utf-8"))
    return value


def test_every_question_is_answered_and_scored_by_every_candidate(parameters: dict[str, Any], tmp_path: Path) -> None:
    questions.main(make_context(tmp_path / "run", parameters))
    samples = samples_of(tmp_path / "run")
    assert [sample["index"] for sample in samples] == list(range(len(QUESTIONS)))
    assert [sample["question"] for sample in samples] == [row["question"] for row in QUESTIONS]
    assert [sample["reference"] for sample in samples] == [row["answer"] for row in QUESTIONS]
    for sample in samples:
        assert list(sample["answers"]) == ["base", "tuned"]
        assert set(sample["answers"]["base"]) == {"text", "exact_match", "rouge_l", "bleu"}
    assert any(sample["answers"]["base"]["text"] != sample["answers"]["tuned"]["text"] for sample in samples)


def test_scores_come_with_intervals_and_a_manifest(parameters: dict[str, Any], tmp_path: Path) -> None:
    questions.main(make_context(tmp_path / "run", parameters))
    scores = scores_of(tmp_path / "run")
    assert scores["num_samples"] == len(QUESTIONS)
    for label in ("base", "tuned"):
        for name in parameters["metrics"]:
            low, high = scores["intervals"][label][name]
            assert low <= scores["scores"][label][name] <= high
    manifest = json.loads((tmp_path / "run" / "output" / "MANIFEST.json").read_text(encoding="utf-8"))
    assert manifest["kind"] == "evaluation"
    assert manifest["metrics"]["tuned/rouge_l"] == scores["scores"]["tuned"]["rouge_l"]
    assert events_of(tmp_path / "run", "progress")[-1]["step"] == 2 * len(QUESTIONS)
    assert len(events_of(tmp_path / "run", "sample")) == 5


def test_two_runs_give_the_same_bytes(parameters: dict[str, Any], tmp_path: Path) -> None:
    for name in ("first", "second"):
        questions.main(make_context(tmp_path / name, parameters))
    for file in ("samples.jsonl", "scores.json"):
        first, second = ((tmp_path / name / "output" / file).read_bytes() for name in ("first", "second"))
        assert first == second


def test_answers_do_not_depend_on_the_batch(tiny_model_folder: Path, tiny_adapter_folder: Path) -> None:
    generator = Generator(tiny_model_folder, [tiny_adapter_folder], choose_device("fp32"), max_new_tokens=8)
    renderer = generator.renderer
    texts = [str(row["question"]) for row in QUESTIONS]
    prompts = [Prompt(i, renderer.encode_prompt([{"role": "user", "content": t}])) for i, t in enumerate(texts)]
    together = generator.answer(prompts, tiny_adapter_folder)
    assert together == [generator.answer([prompt], tiny_adapter_folder)[0] for prompt in prompts]


def test_base_answers_are_the_same_with_an_adapter_loaded(tiny_model_folder: Path, tiny_adapter_folder: Path) -> None:
    prompts = [Prompt(0, Renderer.from_folder(tiny_model_folder).encode_prompt([{"role": "user", "content": "Hi"}]))]
    alone = Generator(tiny_model_folder, [], choose_device("fp32"), 16)
    beside = Generator(tiny_model_folder, [tiny_adapter_folder], choose_device("fp32"), 16)
    assert alone.answer(prompts, None) == beside.answer(prompts, None) != beside.answer(prompts, tiny_adapter_folder)


def test_limit_takes_the_first_questions(parameters: dict[str, Any], tmp_path: Path) -> None:
    questions.main(make_context(tmp_path / "run", {**parameters, "limit": 2}))
    assert len(samples_of(tmp_path / "run")) == scores_of(tmp_path / "run")["num_samples"] == 2


def test_fingerprint_changes_with_questions_and_decoding(parameters: dict[str, Any], tmp_path: Path) -> None:
    other = write_rows(tmp_path / "other.jsonl", QUESTIONS[::-1])
    variants: list[dict[str, Any]] = [{}, {"questions": other}, {"decoding": {"max_new_tokens": 13}}, {"limit": 3}]
    prints = [questions.Plan.from_parameters({**parameters, **change}).fingerprint for change in variants]
    assert len(set(prints)) == len(variants)
    assert questions.Plan.from_parameters({**parameters, "metrics": ["bleu"]}).fingerprint == prints[0]


def test_a_missing_score_fails_the_run(
    parameters: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "exact_match", lambda answer, reference: float("nan"))
    with pytest.raises(ProgramError, match="exact_match has a value for 0 of 6 samples"):
        questions.main(make_context(tmp_path / "run", parameters))
    assert not (tmp_path / "run" / "output" / "MANIFEST.json").exists()


def test_a_stop_between_batches_ends_without_a_result(parameters: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()

    class StopsAtFirstProgress(Reporter):
        def progress(self, step: int, total_steps: int) -> None:
            super().progress(step, total_steps)
            context.should_stop = True

    context = make_context(tmp_path / "run", parameters, StopsAtFirstProgress(tmp_path / "run"))
    with pytest.raises(Stopped, match="stopped after 6 of 12 answers"):
        questions.main(context)
    assert not (tmp_path / "run" / "output" / "MANIFEST.json").exists()


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"metrics": ["f1"]}, "metrics", "allowed are exact_match, rouge_l, bleu"),
        ({"metrics": []}, "metrics", "allowed are"),
        ({"limit": 0}, "limit", "from 1"),
        ({"decoding": {"max_new_tokens": "many"}}, "max_new_tokens", "'many'"),
        ({"decoding": {"max_new_tokens": 1020}}, "questions", "context of 1024 tokens"),
        ({"candidates": []}, "candidates", "different labels"),
        ({"candidates": [{"label": "a", "model": "/nowhere"}]}, "candidates", "/nowhere holds no config.json"),
        ({"candidates": None}, "candidates", "lacks the parameter"),
    ],
)
def test_a_wrong_parameter_is_named(
    change: dict[str, Any], field: str, message: str, parameters: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ProgramError, match=message) as refusal:
        questions.main(make_context(tmp_path / "run", {**parameters, **change}))
    assert refusal.value.field == field


def test_a_question_without_reference_is_named_by_its_line(parameters: dict[str, Any], tmp_path: Path) -> None:
    rows = [QUESTIONS[0], {"messages": [{"role": "user", "content": "a"}]}]
    parameters["questions"] = write_rows(tmp_path / "bad.jsonl", rows)
    with pytest.raises(ProgramError, match=r"bad.jsonl line 2 does not end with an answer"):
        questions.main(make_context(tmp_path / "run", parameters))


def test_an_adapter_with_another_template_is_reported(
    parameters: dict[str, Any], tmp_path: Path, tiny_model_folder: Path, tiny_adapter_folder: Path
) -> None:
    adapter = shutil.copytree(tiny_adapter_folder, tmp_path / "adapter")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model_folder / name, adapter / name)
    (adapter / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    parameters["candidates"][1]["adapter"] = str(adapter)
    questions.main(make_context(tmp_path / "run", parameters))
    assert [event["code"] for event in events_of(tmp_path / "run", "warning")] == ["render_differs"]


def test_batches_hold_every_prompt_once_within_their_limits() -> None:
    prompts = [Prompt(index, [0] * (1 + index * 37 % 900)) for index in range(200)]
    made = list(batches(prompts, max_new_tokens=100))
    assert sorted(prompt.index for batch in made for prompt in batch) == list(range(200))
    for batch in made:
        assert len(batch) <= MAX_BATCH_ROWS
        assert len(batch) * (max(len(prompt.token_ids) for prompt in batch) + 100) <= MAX_BATCH_TOKENS
    assert len(made[0][0].token_ids) == max(len(prompt.token_ids) for prompt in prompts)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("Paris", "Paris", 1.0),
        (" Paris\n", "Paris", 1.0),
        ("a  b", "a\tb", 1.0),
        ("paris", "Paris", 0.0),
        ("", "x", 0.0),
    ],
)
def test_exact_match_ignores_white_space_and_minds_case(answer: str, reference: str, expected: float) -> None:
    assert exact_match(answer, reference) == expected


def test_rouge_counts_chinese_characters_and_english_words() -> None:
    assert RougeTokenizer().tokenize("GPT-2 有88个键。") == ["gpt", "2", "有", "88", "个", "键"]
    assert score_answers("rouge_l", ["八十八个键"], ["八十八个"]).value == pytest.approx(2 * 0.8 * 1 / 1.8)


@pytest.mark.parametrize(
    ("answers", "references", "tokenizer"),
    [
        (["the cat sat on the mat", "a dog ran far away"], ["the cat sat on a mat", "a dog ran away today"], "13a"),
        (["今天天气很好我们去公园", "他在家里看书"], ["今天天气不错我们去公园", "他在家里看书呢"], "zh"),
    ],
)
def test_bleu_equals_sacrebleu(answers: list[str], references: list[str], tokenizer: str) -> None:
    expected = BLEU(tokenize=tokenizer).corpus_score(answers, [references]).score
    assert score_answers("bleu", answers, references).value == pytest.approx(expected)
    assert expected > 20


def test_interval_covers_the_known_spread_of_a_mean() -> None:
    answers = ["x"] * 100
    references = ["x"] * 50 + ["y"] * 50
    score = score_answers("exact_match", answers, references)
    # The standard error of a share of one half over 100 samples is 0.05.
    assert score.value == 0.5
    assert score.interval == pytest.approx((0.4, 0.6), abs=0.02)
