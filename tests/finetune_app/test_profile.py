"""The documented config.json of a training script."""

from __future__ import annotations

import json

import pytest

from clavier.core.errors import Invalid, InvalidFields
from finetune_app.profile import check_saving, parse_profile, profile_text

SAMPLE = {
    "commonHyperParameters": [
        {"description": "学习率", "name": "learning_rate", "value": "1e-4"},
        {"description": "checkPoint必选参数,保存步数", "name": "save_steps", "value": "200"},
    ],
    "fineTuneHyperParameters": [{"description": "LoRA微调的秩大小", "name": "lora_r", "value": "8"}],
    "fineTuneStrategy": "LoRA",
}


def test_the_sample_of_the_document_is_read():
    profile = parse_profile(json.dumps(SAMPLE, ensure_ascii=False).encode("utf-8-sig"))
    assert profile.values == {"learning_rate": "1e-4", "save_steps": "200", "lora_r": "8"}
    assert (profile.fine_tune_names, profile.method) == (("lora_r",), "lora")


def test_what_is_written_for_the_script_reads_back():
    profile = parse_profile(json.dumps(SAMPLE).encode())
    text = profile_text({**profile.values, "learning_rate": "2e-5"}, profile.fine_tune_names, profile.method)
    again = parse_profile(text.encode())
    assert again.values == {"learning_rate": "2e-5", "save_steps": "200", "lora_r": "8"}
    assert (again.fine_tune_names, again.method) == (("lora_r",), "lora")


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"fineTuneStrategy": "QLoRA++"}, "not_a_choice", "LoRA, QLoRA, FineTune"),
        ({"commonHyperParameters": ["x"]}, "wrong_type", r"commonHyperParameters\[0\]"),
        ({"commonHyperParameters": {"name": "x"}}, "wrong_type", "commonHyperParameters"),
        ({"fineTuneHyperParameters": [{"name": "learning_rate", "value": 1}]}, "duplicate_key", "learning_rate"),
        ({"hyperParameters": []}, "unknown_field", "hyperParameters"),
    ],
)
def test_a_broken_profile_is_refused_in_words(change, code, said):
    with pytest.raises(InvalidFields, match=said) as refusal:
        parse_profile(json.dumps(SAMPLE | change).encode())
    assert refusal.value.code == code


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"{", "malformed_json"),
        (b"[]", "wrong_type"),
        (b'{"a": NaN}', "malformed_json"),
        (b"\xff", "malformed_json"),
        (b'{"a": 1, "a": 2}', "duplicate_key"),
        (b"[" * 10_000, "malformed_json"),
    ],
)
def test_what_is_no_json_object_is_refused(content, code):
    with pytest.raises(Invalid) as refusal:
        parse_profile(content)
    assert refusal.value.code == code


def test_checkpoints_need_both_of_their_values():
    with pytest.raises(InvalidFields, match=r"save_strategy.*save_steps") as refusal:
        check_saving({}, wants_checkpoints=True)
    assert {problem.code for problem in refusal.value.problems} == {"required"}
    check_saving({}, wants_checkpoints=False)
    check_saving({"save_strategy": "steps", "save_steps": "200"}, wants_checkpoints=True)


@pytest.mark.parametrize("steps", ["0", "-1", "1.5", "many", "²"])
def test_save_steps_is_a_whole_number_from_one(steps):
    with pytest.raises(InvalidFields, match=">= 1") as refusal:
        check_saving({"save_steps": steps}, wants_checkpoints=False)
    assert refusal.value.code == "out_of_range"
