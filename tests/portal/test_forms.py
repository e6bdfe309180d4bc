"""Forms create through the services, and say beside the field what is wrong."""

from __future__ import annotations

import io
import json
import re
import zipfile

from django.core.files.uploadedfile import SimpleUploadedFile

from clavier.accounts.models import ApiKey, Membership
from clavier.files.models import StoredFile
from clavier.portal.complexity import COMPLEXITIES
from clavier.portal.forms.tasks import TaskForm
from clavier.quotas.models import Gpu, Node, ResourceGroup, ResourceGroupGrant
from clavier.quotas.services import count_devices, set_cap
from datasets_app.models import Dataset, DatasetVersion
from evaluation_app.models import EvaluationTask
from finetune_app.models import FineTuneTask
from inference_app.models import InferenceService
from models_app.models import ModelVersion, ObjectStore
from runner.contract.knobs import KNOBS, check_hyperparameters

ROWS = b'{"question": "a?", "answer": "b"}\n{"question": "c?", "answer": "d"}\n'


def task_data(world, **changes):
    """The form as a browser sends it: every field with what it shows at first."""
    form = TaskForm()
    shown = {name: field.initial for name, field in form.fields.items() if field.initial is not None}
    given = {"name": "from-form", "recipe": "sft", "method": "lora", "base_model": str(world.base.pk)}
    return {**shown, **given, "train_dataset": str(world.data.pk), **changes}


def errors_of(response):
    return re.findall(r'<p class="(?:error|note bad)"[^>]*>([^<]*)', response.content.decode())


def test_a_task_is_created_and_started(alice_browser, world):
    response = alice_browser.post("/tasks/new", task_data(world, lora_r="8", learning_rate="3e-4", start=""))
    task = FineTuneTask.objects.get(name="from-form")
    assert response["Location"] == f"/tasks/{task.pk}"
    assert (task.hyperparameters["lora_r"], task.hyperparameters["learning_rate"]) == (8, 3e-4)
    assert task.run is not None
    assert task.resources == {"cpu_milli": 1000, "memory_mib": 4096, "gpus": 0}


def test_a_task_can_be_saved_without_starting_and_started_later(alice_browser, world):
    alice_browser.post("/tasks/new", task_data(world, save=""))
    task = FineTuneTask.objects.get(name="from-form")
    assert task.run is None
    alice_browser.post(f"/tasks/{task.pk}/start")
    task.refresh_from_db()
    assert task.run is not None


def test_the_form_starts_with_the_defaults_of_the_knob_table(alice_browser, world):
    alice_browser.post("/tasks/new", task_data(world))
    assert FineTuneTask.objects.get(name="from-form").hyperparameters == check_hyperparameters("sft", "lora", {})


def test_a_pretraining_takes_its_own_knobs_only(alice_browser, alice, spooled, world):
    from tests.worlds import make_dataset

    text = make_dataset(alice, spooled, [{"text": "once upon a time"}], name="text")
    data = task_data(
        world, recipe="pretrain", method="full", base_model="", train_dataset=str(text.pk), lora_r="999999"
    )
    response = alice_browser.post("/tasks/new", data)
    assert response.status_code == 302, errors_of(response)
    assert "lora_r" not in FineTuneTask.objects.get(name="from-form").hyperparameters


def test_what_the_page_hides_beside_other_choices_is_not_sent_on(alice_browser, alice, spooled, world):
    from tests.worlds import make_dataset

    prompts = make_dataset(alice, spooled, [{"prompt": "Say a"}], name="prompts")
    data = task_data(world, recipe="rl", train_dataset=str(prompts.pk), reward_function="length", reward_length="3")
    response = alice_browser.post("/tasks/new", {**data, "algorithm": "grpo", "kl_target": "0.7", "vf_coef": "9"})
    assert response.status_code == 302, errors_of(response)
    made = FineTuneTask.objects.get(name="from-form").hyperparameters
    assert (made["kl_target"], made["vf_coef"], made["reward_length"]) == (0.1, 0.1, 3)


def test_a_choice_says_which_recipes_take_it():
    form = TaskForm()
    assert str(form["length_policy"]).count("data-takers") == 1
    assert '<option value="split" data-takers="sft seq2seq">' in str(form["length_policy"])
    assert 'data-beside="algorithm" data-values="ppo"' in str(form["kl_target"])


def test_every_bad_knob_is_named_beside_its_field(alice_browser, world):
    response = alice_browser.post("/tasks/new", task_data(world, learning_rate="7", lora_r="many", warmup_ratio="2"))
    html = response.content.decode()
    assert response.status_code == 400
    form = response.context["page"].form
    assert set(form.errors) == {"learning_rate", "lora_r", "warmup_ratio"}
    assert "many" in form.errors["lora_r"][0]
    assert form.errors["learning_rate"] == ["7 is outside 1e-12 to 1."]
    assert 'value="many"' in html
    assert "<details open>" in html
    assert not FineTuneTask.objects.filter(name="from-form").exists()


def test_a_bad_name_and_missing_data_are_told(alice_browser, world):
    assert errors_of(alice_browser.post("/tasks/new", task_data(world, name="")))
    assert errors_of(alice_browser.post("/tasks/new", task_data(world, train_dataset="")))
    assert errors_of(alice_browser.post("/tasks/new", task_data(world, base_model="")))


def test_charlie_can_not_train_on_the_data_of_alice(charlie_browser, world):
    response = charlie_browser.post("/tasks/new", task_data(world))
    assert response.status_code == 404
    assert not FineTuneTask.objects.filter(name="from-form").exists()


def test_vera_the_viewer_can_not_create_a_task(vera_browser, world):
    assert vera_browser.post("/tasks/new", task_data(world)).status_code == 403


def test_each_complexity_is_a_valid_set_of_knobs():
    for values in COMPLEXITIES.values():
        assert check_hyperparameters("sft", "lora", values)


def test_every_knob_has_a_field_with_help():
    form = TaskForm()
    for knob in KNOBS:
        assert form.fields[knob.name].help_text == knob.help_en


def test_a_dataset_is_uploaded_with_its_facts(alice_browser):
    file = SimpleUploadedFile("faq.jsonl", ROWS)
    response = alice_browser.post("/datasets/new", {"name": "mine", "file": file, "tags": "a, b", "languages": ["zh"]})
    dataset = Dataset.objects.get(name="mine")
    assert response["Location"] == f"/datasets/{dataset.pk}"
    assert (dataset.tags, dataset.languages) == (["a", "b"], ["zh"])
    page = alice_browser.get(f"/datasets/{dataset.pk}").content.decode()
    assert "questions and answers" in page
    assert "c?" in page


def test_a_bad_file_is_refused_with_line_numbers_and_nothing_is_stored(alice_browser):
    file = SimpleUploadedFile("faq.jsonl", ROWS + b'{"question": "e?"}\nnot json\n')
    response = alice_browser.post("/datasets/new", {"name": "mine", "file": file, "purpose": "sft"})
    html = response.content.decode()
    assert response.status_code == 400
    assert "line 3" in html
    assert "line 4" in html
    assert not Dataset.objects.exists()


def test_a_further_version_is_uploaded_and_deleted(alice_browser, world):
    dataset = world.data.dataset
    file = SimpleUploadedFile("more.jsonl", ROWS)
    form = {"file": file, "split": "test", "subset": "长文"}
    assert alice_browser.post(f"/datasets/{dataset.pk}", form).status_code == 302
    version = DatasetVersion.objects.get(dataset=dataset, number=2)
    assert (version.split, version.subset) == ("test", "长文")
    assert alice_browser.get(f"/datasets/{dataset.pk}").content.decode().count("长文") == 2
    assert alice_browser.post(f"/datasets/versions/{version.pk}/delete").status_code == 302
    assert alice_browser.post(f"/datasets/versions/{world.data.pk}/delete").status_code == 409


def test_the_preview_pages_through_rows(alice_browser, world):
    html = alice_browser.get(f"/datasets/versions/{world.data.pk}/rows?row=4&count=1").content.decode()
    assert "How many is 3?" in html
    assert "How many is 2?" not in html
    assert "row=3" in html
    assert "row=5" in html


def test_a_model_is_registered_and_its_import_waits(alice_browser, node):
    data = {"name": "qwen", "source": "huggingface", "location": "Qwen/Qwen2.5-0.5B-Instruct", "tags": "base"}
    response = alice_browser.post("/models/new", data)
    version = ModelVersion.objects.get(model__name="qwen")
    assert response["Location"] == f"/models/{version.model_id}"
    assert version.model.tags == ["base"]
    assert "Importing" in alice_browser.get(response["Location"]).content.decode()


def test_a_bad_location_is_told_beside_the_field(alice_browser, node):
    data = {"name": "qwen", "source": "path", "location": "/etc"}
    assert "no folder below an allowed path" in errors_of(alice_browser.post("/models/new", data))[0]


def test_a_model_comes_from_an_image_or_from_object_storage(alice_browser, charlie_browser, world, settings):
    from_image = {"name": "in-image", "source": "image", "image": str(world.image.pk), "location": "ignored"}
    assert alice_browser.post("/models/new", from_image).status_code == 302
    assert ModelVersion.objects.get(model__name="in-image").location == str(world.image)
    assert charlie_browser.post("/models/new", from_image).status_code == 400
    missing = alice_browser.post("/models/new", {"name": "x", "source": "image"})
    assert missing.context["page"].form.errors == {"image": ["This field is required."]}
    settings.OBJECT_STORE_HOSTS = ["s3.example"]
    store = {"name": "lake", "endpoint_url": "https://s3.example", "access_key": "key", "secret_key": "hidden-secret"}
    assert (
        "OBJECT_STORE_HOSTS"
        in errors_of(alice_browser.post("/settings/object-stores", {**store, "endpoint_url": "https://other.example"}))[
            0
        ]
    )
    assert alice_browser.post("/settings/object-stores", store).status_code == 302
    shown = alice_browser.get("/settings").content.decode()
    assert "s3.example" in shown
    assert "hidden-secret" not in shown
    stored = {"name": "from-s3", "source": "s3", "location": "lake/models/qwen"}
    assert alice_browser.post("/models/new", stored).status_code == 302
    assert ModelVersion.objects.get(model__name="from-s3").source == "s3"
    made = ObjectStore.objects.get()
    assert charlie_browser.post(f"/settings/object-stores/{made.pk}/delete").status_code == 404
    assert "s3.example" not in charlie_browser.get("/settings").content.decode()
    alice_browser.post(f"/settings/object-stores/{made.pk}/delete")
    assert not ObjectStore.objects.exists()


def test_an_evaluation_is_created(alice_browser, world):
    data = {
        "name": "again", "model_version": world.tuned.pk, "dataset_version": world.data.pk, "metrics": ["exact_match"],
        "max_new_tokens": "32", "limit": "",
    }  # fmt: skip
    response = alice_browser.post("/evaluations/new", data)
    task = EvaluationTask.objects.get(name="again")
    assert response["Location"] == f"/evaluations/{task.pk}"
    assert (task.metrics, task.limit, task.decoding) == (["exact_match"], None, {"max_new_tokens": 32})
    assert errors_of(alice_browser.post("/evaluations/new", data | {"max_new_tokens": "99999"}))


def test_a_service_is_deployed_or_saved_as_a_draft(alice_browser, world):
    data = {
        "name": "second", "model_version": world.tuned.pk,
        "num_replicas": "1", "context_tokens": "512", "parallel": "2",
        "cpu_cores": "0.5", "memory_gib": "1", "gpus": "0",
    }  # fmt: skip
    assert alice_browser.post("/services/new", data).status_code == 302
    assert InferenceService.objects.get(name="second").desired_state == "running"
    assert "exists" in errors_of(alice_browser.post("/services/new", data))[0]
    alice_browser.post("/services/new", data | {"name": "third", "save": ""})
    assert InferenceService.objects.get(name="third").desired_state == "draft"


def test_files_are_uploaded_listed_and_deleted(alice_browser):
    alice_browser.post("/files/folders", {"area": "private", "folder": "", "name": "data"})
    upload = {"area": "private", "folder": "data", "file": SimpleUploadedFile("训练.txt", b"hello")}
    assert alice_browser.post("/files/upload", upload)["Location"] == "/files?area=private&folder=data"
    assert "训练.txt" in alice_browser.get("/files?area=private&folder=data").content.decode()
    again = upload | {"file": SimpleUploadedFile("训练.txt", b"hello")}
    assert "exists" in errors_of(alice_browser.post("/files/upload", again))[0]
    row = StoredFile.objects.get(name="训练.txt")
    assert b"".join(alice_browser.get(f"/files/{row.pk}/download").streaming_content) == b"hello"
    alice_browser.post(f"/files/{row.pk}/delete")
    assert not StoredFile.objects.filter(name="训练.txt").exists()


def test_an_archive_is_unpacked_beside_itself(alice_browser, charlie_browser):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("data/train/a.jsonl", "{}")
    upload = {"area": "private", "folder": "", "file": SimpleUploadedFile("all.zip", content.getvalue())}
    alice_browser.post("/files/upload", upload)
    row = StoredFile.objects.get(name="all.zip")
    assert f"/files/{row.pk}/extract" in alice_browser.get("/files").content.decode()
    assert charlie_browser.post(f"/files/{row.pk}/extract").status_code == 404
    assert alice_browser.post(f"/files/{row.pk}/extract")["Location"] == "/files?area=private&folder="
    assert StoredFile.objects.get(name="a.jsonl").path == "data/train/a.jsonl"
    again = alice_browser.post(f"/files/{row.pk}/extract")
    assert (again.status_code, "exists" in errors_of(again)[0]) == (409, True)


def test_the_secret_of_a_key_is_shown_once_and_the_key_can_be_revoked(alice_browser):
    data = {"name": "ci", "scopes": ["read"], "expires_in_days": "30"}
    response = alice_browser.post("/settings/keys", data)
    secret = re.search(r'id="secret">\s*(clv_[\w-]+)', response.content.decode()).group(1)
    key = ApiKey.objects.get(name="ci")
    assert secret.startswith(key.prefix)
    assert (key.scopes, response["Cache-Control"]) == (["read"], "no-store")
    assert secret not in alice_browser.get("/settings").content.decode()
    alice_browser.post(f"/settings/keys/{key.pk}/revoke")
    key.refresh_from_db()
    assert key.revoked_at is not None


def test_members_are_added_changed_and_removed(alice_browser, charlie_user):
    alice_browser.post("/settings/members", {"username": "charlie", "role": "viewer"})
    membership = Membership.objects.get(user=charlie_user, tenant__name="one")
    alice_browser.post("/settings/members/charlie/role", {"role": "member"})
    membership.refresh_from_db()
    assert membership.role == "member"
    alice_browser.post("/settings/members/charlie/remove")
    assert not Membership.objects.filter(pk=membership.pk).exists()
    assert "no user" in errors_of(alice_browser.post("/settings/members", {"username": "nobody", "role": "member"}))[0]


def test_bob_can_not_make_himself_an_owner(bob_browser):
    assert bob_browser.post("/settings/members/bob/role", {"role": "owner"}).status_code == 403


def test_a_version_is_cleaned_and_split_from_its_page(alice_browser, charlie_browser, alice, spooled):
    from tests.worlds import make_dataset

    rows = [{"question": f"q{n % 8}", "answer": "mail bob@example.com\x07"} for n in range(10)]
    version = make_dataset(alice, spooled, rows, "to-clean")
    page = f"/datasets/versions/{version.pk}"
    assert charlie_browser.post(f"{page}/clean", {"deduplicate": "on"}).status_code == 404
    response = alice_browser.post(f"{page}/clean", {"deduplicate": "on", "deidentify": "on", "controls": "on"})
    cleaned = DatasetVersion.objects.get(dataset=version.dataset, number=2)
    assert response["Location"] == f"/datasets/{version.dataset_id}?version=2"
    assert (cleaned.num_samples, cleaned.changes["personal_data"]) == (8, {"email": 8})
    shown = alice_browser.get(response["Location"]).content.decode()
    assert "Made from" in shown
    assert "repeated rows: −2" in shown
    assert "rows with control characters removed: 10" in shown
    response = alice_browser.post(f"/datasets/versions/{cleaned.pk}/split", {"validation": "25", "test": "0"})
    splits = DatasetVersion.objects.filter(parent=cleaned).values_list("split", "num_samples")
    assert dict(splits) == {"train": 6, "validation": 2}
    assert alice_browser.post(f"{page}/split", {"validation": "x"}).status_code == 400


def test_a_person_chooses_a_group_and_a_kind_of_gpu(alice_browser, alice, world):
    group = ResourceGroup.objects.create(name="research", is_open=False)
    node = Node.objects.create(name="r1", resource_group=group, executor="fake")
    for resource, cap in (("cpu_milli", 8000), ("memory_mib", 32768)):
        set_cap(scope="node", scope_id=node.pk, resource=resource, cap=cap)
    Gpu.objects.create(uuid="GPU-0", node=node, memory_mib=80_000, allows_sharing=True)
    Gpu.objects.create(uuid="MIG-0", node=node, memory_mib=9_000, mig_profile="1g.10gb", parent_uuid="GPU-1")
    count_devices(node)
    assert "research" not in alice_browser.get("/tasks/new").content.decode()
    refused = alice_browser.post("/tasks/new", task_data(world, resource_group="research"))
    assert refused.status_code == 400, "not granted"
    ResourceGroupGrant.objects.create(resource_group=group, user_id=alice.user_id)
    html = alice_browser.get("/tasks/new").content.decode()
    for words in ("research (free: 8 CPU cores, 1 GPUs)", "a share of one GPU", "MIG 1g.10gb"):
        assert words in html, words
    share = {"gpu_kind": "share", "gpu_cores_percent": "30", "gpu_memory_gib": "10"}
    mig = {"gpu_kind": "mig:1g.10gb", "gpus": "1"}
    for name, asked, expected in (
        ("shared", share, {"gpus": 0, "gpu_cores_percent": 30, "gpu_memory_mib": 10_240}),
        ("sliced", mig, {"gpus": 0, "mig_profile": "1g.10gb", "mig_devices": 1}),
    ):
        response = alice_browser.post("/tasks/new", task_data(world, name=name, resource_group="research", **asked))
        assert response.status_code == 302, errors_of(response)
        task = FineTuneTask.objects.get(name=name)
        assert task.resources == {"cpu_milli": 1000, "memory_mib": 4096, **expected}
        assert task.run.resource_group == "research"
    wrong = alice_browser.post(
        "/tasks/new", task_data(world, resource_group="research", gpu_kind="share", gpu_cores_percent="30")
    )
    assert "resources.gpu_memory_mib is required with resources.gpu_cores_percent." in errors_of(wrong)


def test_an_evaluation_is_sent_to_a_group_too(alice_browser, alice, world):
    ResourceGroup.objects.create(name="other")
    data = {
        "name": "judge", "model_version": str(world.base.pk), "dataset_version": str(world.data.pk),
        "metrics": ["bleu"], "max_new_tokens": "8", "resource_group": "other",
    }  # fmt: skip
    refused = alice_browser.post("/evaluations/new", data)
    assert refused.status_code == 422
    assert "has no node" in refused.content.decode()
    assert alice_browser.post("/evaluations/new", data | {"resource_group": "default"}).status_code == 302


def test_a_service_is_sent_to_a_group_too(alice_browser, world):
    ResourceGroup.objects.create(name="other")
    data = {
        "name": "fourth", "model_version": world.tuned.pk, "num_replicas": "1", "parallel": "2",
        "resource_group": "other", "save": "",
    }  # fmt: skip
    response = alice_browser.post("/services/new", data)
    assert response.status_code == 302, errors_of(response)
    (version,) = InferenceService.objects.get(name="fourth").versions.all()
    assert version.options == {"resource_group": "other"}


def test_the_form_estimates_what_the_task_would_need(alice_browser, world):
    config = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 1000}
    (world.base.path / "config.json").write_text(json.dumps(config))
    shown = alice_browser.post("/tasks/estimate", task_data(world)).content.decode()
    assert "A first estimate" in shown
    assert re.search(r"[\d,.]+ steps, [\d,.]+ – [\d,.]+ tokens", shown)
    assert "fits" in shown
    assert "GiB" in shown
    assert not FineTuneTask.objects.filter(name="from-form").exists()
    shown = alice_browser.post("/tasks/estimate", task_data(world, train_dataset="")).content.decode()
    assert "data set version" in shown
    shown = alice_browser.post("/tasks/estimate", task_data(world, gpus=1)).content.decode()
    assert "How much memory the GPU has is not known here" in shown
