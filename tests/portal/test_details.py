"""What details show, and what their scripts poll."""

from __future__ import annotations

from clavier.portal.contexts.tasks import newest_numbers, newest_phase
from finetune_app.models import FineTuneTask
from inference_app.models import InferenceService
from models_app.models import ModelVersion
from runner.contract import folder
from tests.portal.conftest import LOG, METRICS


def page(browser, path):
    response = browser.get(path)
    assert response.status_code == 200
    return response.content.decode()


def test_a_running_task_shows_progress_and_can_be_stopped(alice_browser, world):
    html = page(alice_browser, f"/tasks/{world.live.pk}")
    assert "Running" in html
    assert "2 / 4" in html
    assert "1.5000" in html
    alice_browser.post(f"/tasks/{world.live.pk}/stop")
    assert FineTuneTask.objects.get(pk=world.live.pk).run.state == "STOPPING"


def test_the_status_is_swapped_while_the_state_stays_and_reloads_when_it_changes(alice_browser, world):
    same = alice_browser.get(f"/tasks/{world.live.pk}/status?state=RUNNING")
    assert (same.status_code, b"hx-trigger" in same.content) == (200, True)
    other = alice_browser.get(f"/tasks/{world.live.pk}/status?state=PENDING")
    assert (other.status_code, other["HX-Refresh"]) == (204, "true")


def test_a_finished_task_leads_to_its_model_version(alice_browser, world):
    html = page(alice_browser, f"/tasks/{world.done.pk}")
    assert str(world.tuned) in html
    assert f"/services/new?model_version={world.tuned.pk}" in html
    assert f"/evaluations/new?model_version={world.tuned.pk}" in html
    assert "hx-trigger" not in html


def test_the_training_loss_stays_when_the_newest_event_is_a_validation():
    events = [METRICS[2], {"kind": "metric", "step": 2, "epoch": 0.5, "eval/loss": 1.75}]
    numbers = newest_numbers(events)
    assert (numbers["train_loss"], numbers["eval_loss"], numbers["epoch"]) == (2.0, 1.75, 0.5)


def test_a_waiting_task_says_its_place(alice_browser, world):
    assert "Place 1 in the queue" in page(alice_browser, f"/tasks/{world.waiting.pk}")


def test_metrics_are_read_on_by_offset(alice_browser, world):
    first = alice_browser.get(f"/tasks/{world.live.pk}/metrics?offset=0").json()
    assert first["events"] == METRICS
    rest = alice_browser.get(f"/tasks/{world.live.pk}/metrics?offset={first['next_offset']}").json()
    assert rest == {"events": [], "next_offset": first["next_offset"]}


def test_the_log_is_read_on_by_offset_and_downloaded_whole(alice_browser, world):
    first = alice_browser.get(f"/tasks/{world.live.pk}/log?offset=0")
    assert (first.content.decode(), first["X-Next-Offset"]) == (LOG, str(len(LOG)))
    assert first["Content-Type"] == "text/plain; charset=utf-8"
    tail = alice_browser.get(f"/tasks/{world.live.pk}/log?offset=-30")
    assert tail.content.decode() == "INFO  step 1/4 | loss 2.0\n"
    whole = alice_browser.get(f"/tasks/{world.live.pk}/log.txt")
    assert b"".join(whole.streaming_content).decode() == LOG
    assert whole["Content-Disposition"] == 'attachment; filename="tune-live.log"'


def test_a_live_task_says_the_time_left_instead_of_the_phase_it_has_left(alice_browser, world):
    html = page(alice_browser, f"/tasks/{world.live.pk}")
    assert "<dt>Time left</dt><dd>1 min 15 s</dd>" in html
    assert "training started" not in html


def test_a_phase_is_shown_until_a_step_is_counted_after_it():
    phase, counted = {"t": 1.0, "message": "loading"}, {"t": 2.0, "step": 1}
    assert newest_phase({"phase": phase}) == "loading"
    assert newest_phase({"phase": phase, "progress": counted}) == ""
    assert newest_phase({"progress": counted, "phase": {"t": 3.0, "message": "saving"}}) == "saving"
    assert newest_phase({}) == ""


def test_the_evaluation_shows_base_beside_tuned_and_filters_samples(alice_browser, world):
    path = f"/evaluations/{world.evaluation.pk}"
    html = page(alice_browser, path)
    assert "+0.8000" in html
    assert "0.4000 – 1.0000" in html
    assert html.count("<article") == 5
    wrong = page(alice_browser, f"{path}?only=wrong")
    assert wrong.count("<article") == 1
    assert "no idea" in wrong
    assert page(alice_browser, f"{path}?only=changed").count("<article") == 4


def test_a_model_shows_its_lineage_and_downloads_as_tar(alice_browser, world):
    html = page(alice_browser, f"/models/{world.tuned.model_id}")
    for word in (str(world.base), "faq v1", "tune-done"):
        assert word in html
    response = alice_browser.get(f"/models/versions/{world.tuned.pk}/download")
    content = b"".join(response.streaming_content)
    assert len(content) == int(response["Content-Length"])


def test_a_service_shows_its_replica_and_how_to_ask(alice_browser, world):
    html = page(alice_browser, f"/services/{world.service.pk}")
    assert "xllamacpp" in html
    assert "http://testserver/openai/v1/chat/completions" in html
    log = alice_browser.get(f"/services/{world.service.pk}/replicas/{world.replica.pk}/log")
    assert log.content == b"INFO  ready\n"


def test_the_log_of_a_run_that_is_no_replica_is_not_shown(alice_browser, world):
    path = f"/services/{world.service.pk}/replicas/{world.live.run_id}/log"
    assert alice_browser.get(path).status_code == 404


def test_a_service_that_scores_is_asked_for_scores_and_has_no_chat(alice_browser, world):
    ModelVersion.objects.filter(service_versions__service=world.service).update(task="reward")
    html = page(alice_browser, f"/services/{world.service.pk}")
    assert "http://testserver/openai/v1/pooling" in html
    for path in (f"/services/{world.service.pk}", "/services"):
        assert "/chat" not in page(alice_browser, path)
    assert alice_browser.get(f"/services/{world.service.pk}/chat").status_code == 404


def test_the_chat_offers_questions_of_the_training_data(alice_browser, world):
    html = page(alice_browser, f"/services/{world.service.pk}/chat")
    assert 'data-question="How many is 0?"' in html
    assert 'data-service="faq-bot"' in html
    assert 'data-url="/openai/v1/chat/completions"' in html


def test_a_service_is_stopped_and_started(alice_browser, world):
    path = f"/services/{world.service.pk}"
    assert alice_browser.post(f"{path}/stop").status_code == 302
    assert InferenceService.objects.get().desired_state == "stopped"
    assert alice_browser.post(f"{path}/stop").status_code == 409


def test_the_dashboard_counts_what_there_is(alice_browser, world):
    html = page(alice_browser, "/")
    for count, noun in ((1, "Datasets"), (2, "Models"), (3, "Tasks"), (2, "Live tasks"), (1, "Services")):
        assert f"<b>{count}</b><span>{noun}</span>" in html
    assert "Node local" in html


def test_what_a_program_writes_is_never_taken_for_html(alice_browser, world):
    hostile = '{"t": 9, "kind": "phase", "name": "x", "message": "<script>alert(1)</script>"}\n'
    from clavier.runs.outputs import run_folder

    with open(run_folder(world.live.run_id) / folder.METRICS, "a") as stream:
        stream.write(hostile)
    assert "<script>alert" not in page(alice_browser, f"/tasks/{world.live.pk}")
