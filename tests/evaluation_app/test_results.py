"""Metrics out of the files of real evaluation programs; the samples have their exact form."""

from __future__ import annotations

import pytest

from clavier.core.errors import Invalid
from evaluation_app.results import metrics_of

OPENCOMPASS_CSV = (
    "dataset,version,metric,mode,llama2-13b\r\n"
    "--------- 考试 Exam ---------,-,-,-,-\r\n"
    "ceval,-,naive_average,gen,41.44\r\n"
    "piqa,1cc9f0,accuracy,ppl,78.45\r\n"
    "mmlu,-,-,-,-\r\n"
)
OPENCOMPASS_TXT = """20231023_070304
tabulate format
^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
dataset    version    metric    mode      llama2-13b
---------  ---------  --------  ------  ------------
piqa       1cc9f0     accuracy  ppl            78.45
$$$$$$$$$$$$$$$$$$$$$$$$$$$$$$$$$$$$$$$$

---------------------------------------- THIS IS A DIVIDER ----------------------------------------

csv format
^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
dataset,version,metric,mode,llama2-13b
piqa,1cc9f0,accuracy,ppl,78.45
siqa,ced5f6,accuracy,ppl,44.78
$$$$$$$$$$$$$$$$$$$$$$$$$$$$$$$$$$$$$$$$
"""
LM_EVAL = (
    '{"results": {"hellaswag": {"alias": "hellaswag", "acc,none": 0.57, "acc_stderr,none": 0.005}},'
    ' "configs": {"hellaswag": {"num_fewshot": 5}}, "n-shot": {"hellaswag": 5}}'
)


@pytest.mark.parametrize(
    ("path", "content", "expected"),
    [
        ("summary/summary.csv", OPENCOMPASS_CSV, {"ceval/naive_average": 41.44, "piqa/accuracy": 78.45}),
        ("summary/summary.txt", OPENCOMPASS_TXT, {"piqa/accuracy": 78.45, "siqa/accuracy": 44.78}),
        ("a.csv", "dataset,version,metric,mode,a,b\npiqa,1,acc,ppl,1,2\n", {"piqa/acc/a": 1, "piqa/acc/b": 2}),
        ("results_2024.json", LM_EVAL, {"hellaswag/acc,none": 0.57, "hellaswag/acc_stderr,none": 0.005}),
        ("metrics.json", '{"rouge": {"l": 0.5}, "n": 3, "ok": true, "who": "me", "x": [1]}', {"rouge/l": 0.5, "n": 3}),
        ("metrics.csv", "metric,value\naccuracy,0.5\nf1,\n", {"accuracy": 0.5}),
        ("table.csv", "name,accuracy,f1\nbase,0.1,0.2\ntuned,0.3,x\n",
         {"base/accuracy": 0.1, "base/f1": 0.2, "tuned/accuracy": 0.3}),
        ("one.csv", "accuracy,f1\n0.5,0.25\n", {"accuracy": 0.5, "f1": 0.25}),
        ("metrics.json", "\ufeff{\"a\": 1}", {"a": 1}),
        ("notes.txt", "accuracy: 0.5", {}),
        ("details.json", "[1, 2]", {}),
        ("broken.json", "{", {}),
        ("empty.csv", "", {}),
    ],
)  # fmt: skip
def test_known_forms_are_recognized(path, content, expected):
    assert metrics_of(path, content.encode()) == expected


@pytest.mark.parametrize("content", ["{", '{"loss": NaN}', "{" * 100_000])
def test_metrics_that_are_no_json_are_named(content):
    with pytest.raises(Invalid, match=r"out/metrics\.json") as refusal:
        metrics_of("out/metrics.json", content.encode())
    assert refusal.value.code == "bad_output"


def test_a_file_of_samples_is_no_table_of_metrics():
    rows = "id,score\n" + "".join(f"{n},{n}\n" for n in range(600))
    assert metrics_of("samples.csv", rows.encode()) == {}
