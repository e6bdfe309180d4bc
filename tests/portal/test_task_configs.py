"""A YAML training configuration fills the form of a task or of a search, and stays with what it truly describes."""

from __future__ import annotations

from django.core.files.uploadedfile import SimpleUploadedFile

from finetune_app.models import FineTuneTask, HyperparameterSearch
from inference_app.services import create_service
from tests.worlds import make_dataset, make_model_version

URL = "/tasks/new/config"


def config_of(world, **changes):
    names = {"base_model": world.base.model.name, "dataset": world.data.dataset.name, **changes}
    return "task_type: lora\nlora_r: 8\nlearning_rate: 2e-5\n" + "".join(f"{k}: {v}\n" for k, v in names.items())


def filled(response):
    """The form as a browser sends it after it was filled, with its line ends."""
    form = response.context["page"].form
    values = {name: form[name].value() for name in form.fields}
    return {name: str(value).replace("\n", "\r\n") for name, value in values.items() if value is not None}


def test_a_pasted_configuration_fills_the_form_and_stays_with_the_task(alice_browser, world):
    config = config_of(world)
    response = alice_browser.post(URL, {"config": config.replace("\n", "\r\n")})
    assert response.status_code == 200
    given = filled(response)
    assert (given["lora_r"], given["learning_rate"], given["base_model"]) == ("8", "2e-05", str(world.base.pk))
    made = alice_browser.post("/tasks/new", {**given, "save": ""})
    task = FineTuneTask.objects.get(pk=made["Location"].rpartition("/")[2])
    assert (task.config, task.hyperparameters["lora_r"], task.name) == (config, 8, f"sft-{world.base.model.name}")
    assert f"/tasks/{task.pk}/config.yaml" in alice_browser.get(f"/tasks/{task.pk}").content.decode()
    assert alice_browser.get(f"/tasks/{task.pk}/config.yaml").content.decode() == config


def test_a_form_that_was_changed_since_keeps_no_configuration(alice_browser, world):
    given = filled(alice_browser.post(URL, {"config": config_of(world)}))
    made = alice_browser.post("/tasks/new", {**given, "lora_r": "4", "save": ""})
    task = FineTuneTask.objects.get(pk=made["Location"].rpartition("/")[2])
    assert (task.config, task.hyperparameters["lora_r"]) == ("", 4)
    assert alice_browser.get(f"/tasks/{task.pk}/config.yaml").status_code == 404


def test_an_uploaded_file_that_tunes_fills_the_form_of_a_search(alice_browser, world):
    tuning = "{enabled: true, trials: 3, metric: train_loss}"
    config = config_of(world, hyperparameter_tuning=tuning)
    response = alice_browser.post(URL, {"upload": SimpleUploadedFile("a.yaml", config.encode())})
    given = {**filled(response), "pruner": "none"}
    assert (given["num_trials"], given["metric"], given["range_name_0"]) == ("3", "train/loss", "learning_rate")
    made = alice_browser.post("/tasks/searches/new", {**given, "name": "tuned"})
    assert made.status_code == 302, made.context["page"].form.errors
    search = HyperparameterSearch.objects.get(name="tuned")
    assert (search.task["config"], search.space["lora_r"]) == (config, {"choices": [8, 16, 32]})
    alice_browser.post("/tasks/searches/new", {**given, "name": "other", "num_trials": "2"})
    assert "config" not in HyperparameterSearch.objects.get(name="other").task


def test_lists_that_a_file_tries_stay_lists_in_the_form(alice_browser, world):
    space = "{target_modules: {choices: [[q_proj, v_proj], all-linear]}}"
    tuning = f"{{enabled: true, trials: 2, metric: train_loss, space: {space}}}"
    config = config_of(world, hyperparameter_tuning=tuning)
    given = {**filled(alice_browser.post(URL, {"config": config})), "pruner": "none", "name": "lists"}
    assert given["range_choices_0"] == "q_proj, v_proj; all-linear"
    assert alice_browser.post("/tasks/searches/new", given).status_code == 302
    search = HyperparameterSearch.objects.get(name="lists")
    assert search.space == {"target_modules": {"choices": [["q_proj", "v_proj"], ["all-linear"]]}}
    assert search.task["config"] == config
    assert "target_modules = " in alice_browser.get(f"/tasks/searches/{search.pk}").content.decode()


def test_what_is_wrong_is_said_above_the_form(alice_browser, world):
    for given, said in (
        ({"config": config_of(world, lora_x=1)}, "lora_x"),
        ({"config_file": "private/nothing.yaml"}, "private/nothing.yaml"),
        ({"upload": SimpleUploadedFile("a.yaml", b"\xff")}, "UTF-8"),
    ):
        response = alice_browser.post(URL, given)
        assert (response.status_code in (400, 404), said in response.content.decode()) == (True, True)


def test_charlie_fills_nothing_in_with_the_names_of_alice(charlie_browser, world):
    response = charlie_browser.post(URL, {"config": config_of(world)})
    assert response.status_code == 404
    assert charlie_browser.get(f"/tasks/{world.live.pk}/config.yaml").status_code == 404


def test_a_service_that_scores_fills_in_the_model_that_it_serves(alice, alice_browser, world, spooled):
    prompts = make_dataset(alice, spooled, [{"prompt": f"Say {n}"} for n in range(4)], name="prompts")
    scorer = make_model_version(alice, "scorer", task="reward")
    create_service(actor=alice, name="judge", model_version=scorer.pk, start=False)
    base, data = world.base.model.name, prompts.dataset.name
    config = f"task_type: rl\npolicy_model: {base}\nreward_service: judge\ndataset: {data}\n"
    given = filled(alice_browser.post(URL, {"config": config}))
    assert given["reward_model"] == str(scorer.pk)
    made = alice_browser.post("/tasks/new", {**given, "save": ""})
    task = FineTuneTask.objects.get(pk=made["Location"].rpartition("/")[2])
    assert (task.config, task.reward_version_id) == (config, scorer.pk)
