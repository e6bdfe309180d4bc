"""Searches in the portal: the form makes one, the page shows its trials, and only its owner stops it."""

from __future__ import annotations

import pytest
from django.utils import timezone

from finetune_app.models import HyperparameterSearch, SearchTrial
from finetune_app.search import create_search


@pytest.fixture
def search(alice, world):
    """Three trials of Alice's: the second is the best, the third was stopped early."""
    made = create_search(
        actor=alice, name="rates", space={"learning_rate": {"low": 1e-5, "high": 1e-1, "log": True}}, num_trials=3,
        num_parallel=3, metric="train/loss", recipe="sft", method="lora", base_model=world.base.pk,
        train_dataset=world.data.pk, pruner="median", resources={"cpu_milli": 100, "memory_mib": 2048},
    )  # fmt: skip
    now = timezone.now()
    for number, value in ((1, 1.5), (2, 0.25)):
        SearchTrial.objects.filter(search=made, number=number).update(value=value, ended_at=now)
    SearchTrial.objects.filter(search=made, number=3).update(
        pruned_at=now, ended_at=now, message="Stopped at step 3: it fell behind the others."
    )
    return made


def test_the_page_shows_trials_the_best_and_a_drawing(alice_browser, search):
    assert "rates" in alice_browser.get("/tasks/searches?search=rate").content.decode()
    html = alice_browser.get(f"/tasks/searches/{search.pk}").content.decode()
    assert html.count("<circle") == 2
    assert html.count('class="best"') == 1
    assert "0.2500" in html
    assert "fell behind" in html
    part = alice_browser.get(f"/tasks/searches/{search.pk}", headers={"HX-Request": "true"}).content.decode()
    assert part.lstrip().startswith('<div id="trials"')


def test_the_form_makes_a_search_and_names_what_is_wrong(alice_browser, world):
    assert alice_browser.get("/tasks/searches/new").status_code == 200
    given = {
        "name": "formed", "recipe": "sft", "method": "lora", "base_model": str(world.base.pk), "max_steps": "4",
        "train_dataset": str(world.data.pk), "metric": "train/loss", "num_trials": "2", "num_parallel": "1",
        "pruner": "halving", "pruning_warmup_steps": "2", "range_name_0": "learning_rate", "range_low_0": "1e-5",
        "range_high_0": "1e-2", "range_log_0": "yes", "range_name_1": "lora_r", "range_choices_1": "8, 16",
        "cpu_cores": "1", "memory_gib": "2",
    }  # fmt: skip
    refused = alice_browser.post("/tasks/searches/new", given | {"range_high_0": "7"})
    assert refused.status_code == 400
    assert "outside" in refused.content.decode()
    assert alice_browser.post("/tasks/searches/new", given).status_code == 302
    made = HyperparameterSearch.objects.get(name="formed")
    assert made.space == {
        "learning_rate": {"low": 1e-5, "high": 1e-2, "log": True}, "lora_r": {"choices": [8, 16]},
    }  # fmt: skip
    assert made.task["hyperparameters"] == {"max_steps": "4"}
    assert (made.pruner, made.pruning_warmup_steps, made.num_trials) == ("halving", 2, 2)


def test_charlie_sees_nothing_and_bob_stops_nothing(charlie_browser, bob_browser, alice_browser, search):
    url = f"/tasks/searches/{search.pk}"
    assert charlie_browser.get(url).status_code == 404
    assert "rates" not in charlie_browser.get("/tasks/searches").content.decode()
    assert bob_browser.post(f"{url}/stop").status_code == 403
    assert alice_browser.post(f"{url}/stop").status_code == 302
    HyperparameterSearch.objects.filter(pk=search.pk).update(ended_at=timezone.now())
    assert alice_browser.post(f"{url}/delete").status_code == 302
    assert not HyperparameterSearch.objects.exists()
