"""Metrics and progress out of what scripts of users print. The samples are verbatim output of the real libraries."""

from __future__ import annotations

import pytest

from clavier.runs.printed import bar_of, dictionary_of, events_of, last_words

#: transformers 4.44, Trainer on a terminal-less log: the bar is drawn over with \r, dictionaries come by tqdm.write.
TRAINER = (
    "\r  0%|          | 0/900 [00:00<?, ?it/s]\r  1%|          | 10/900 [00:03<04:28,  3.31it/s]"
    "\r                                                  \r"
    "{'loss': 2.3012, 'grad_norm': 1.2290077209472656, 'learning_rate': 4.944444444444445e-05, 'epoch': 0.03}\n"
    "\r  1%|          | 10/900 [00:03<04:28,  3.31it/s]\r  2%|▏         | 20/900 [00:06<1:04:28,  3.31it/s]"
    "\r                                                  \r{'eval_loss': 1.91, 'eval_runtime': 4.2, 'epoch': 0.07}\n"
)


def test_the_output_of_the_hugging_face_trainer_becomes_metrics_and_progress():
    first, second, progress = events_of(TRAINER)
    assert first == {
        "kind": "metric", "step": 10, "total_steps": 900, "epoch": 0.03, "train/loss": 2.3012,
        "train/grad_norm": 1.2290077209472656, "train/learning_rate": 4.944444444444445e-05,
    }  # fmt: skip
    assert (second["step"], second["eval/loss"], second["eval/runtime"]) == (20, 1.91, 4.2)
    assert progress == {"kind": "progress", "step": 20, "total_steps": 900, "eta_s": 3868.0}


def test_a_later_part_of_the_log_knows_the_step_from_what_stands_before():
    text = "{'loss': 2.1, 'epoch': 0.1}\n"
    assert events_of(text, before="junk\r  3%|▎ | 30/900 [00:10<05:00, 2.9it/s]\r")[0]["step"] == 30
    assert events_of(text)[0]["step"] == 100  # thousandths of an epoch


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{'loss': '2.301', 'learning_rate': '5e-05', 'epoch': '0.5'}", {"train/loss": 2.301, "step": 500}),
        ('{"loss": 1.5, "step": 7}', {"train/loss": 1.5, "step": 7}),
        ("INFO:root:{'loss': 1.5, 'epoch': 1.0}", {"train/loss": 1.5, "epoch": 1.0}),
        ("{'loss': nan, 'grad_norm': 2.0, 'epoch': 1.0}", {"train/grad_norm": 2.0}),
        ("{'train_runtime': 50.1, 'train_loss': 0.9, 'epoch': 3.0}", {"train/mean_loss": 0.9, "step": 3000}),
        ("{'rewards/chosen': 0.5, 'loss': 0.3, 'epoch': 1.0}", {"rewards/chosen": 0.5}),
    ],
)
def test_dictionaries_of_other_versions_are_read_too(line, expected):
    (event,) = events_of(line + "\n")
    assert expected.items() <= event.items()
    assert "nan" not in str(event)


@pytest.mark.parametrize(
    "line",
    [
        "{'name': 'qwen', 'size': 3}",
        "{'loss': }",
        "{'loss': __import__('os').system('id'), 'epoch': 1}",
        "{'loss': 2.3}",
        "{" * 5000,
        "{'loss': " + "[" * 3000 + "}",
        "config = {'epoch'}",
        "{'loss': 1.0, 'epoch': 1}" + " " * 9000,
    ],
)
def test_what_is_no_metric_is_passed_over(line):
    assert events_of(line) == []


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("Epoch 1:  30%|███       | 30/100 [00:10<00:20,  2.9it/s, loss=1.2]", 30),
        ("Training: 100%|██████████| 5/5 [00:01<00:00,  2.9it/s]", 5),
        ("Downloading shards:  30%|███       | 3/10 [00:10<00:20,  2.9it/s]", None),
        ("Map:  50%|█████     | 500/1000 [00:00<00:00, 2000 examples/s]", None),
        ("coverage is 30%", None),
    ],
)
def test_only_bars_that_count_training_are_progress(line, step):
    found = bar_of(line)
    assert (found and found["step"]) == step


def test_python_in_a_line_is_never_run():
    assert dictionary_of("{'loss': open('/tmp/canary', 'w')}") is None


def test_the_last_words_of_a_program_say_why_it_failed():
    traceback = "step 1\nTraceback (most recent call last):\n  File 'x'\nValueError: no such column\nwandb: done\n"
    assert last_words(traceback) == "ValueError: no such column"
    assert last_words("usage: train.py\ntrain.py: error: unrecognized arguments: --lora_r 8\n").endswith("--lora_r 8")
    assert last_words("a\n[clavier] command not run: /nope: No such file or directory\n").startswith("command not run")
    assert last_words("a\nb\n[clavier] stop requested\n") == "b"
    assert last_words("") == ""
