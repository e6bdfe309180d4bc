"""Bad input: credentials and identity."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from asgiref.sync import async_to_sync
from django.conf import settings
from django.contrib.sessions.models import Session
from django.test import Client
from django.utils import timezone
from rest_framework.test import APIClient

from clavier.accounts.models import User
from clavier.accounts.services import create_own_api_key, revoke_own_api_key
from inference_app.gateway import Gateway
from tests.cases.registry import ENGLISH, Later, Scene, case
from tests.inference_app.test_gateway import Exchange

CREATE, LIST = "/kernel/fineTune/createLlmFineTuneTask", "/kernel/fineTune/listLlmFineTuneTask"
DETAIL = "/kernel/fineTune/queryLlmFineTuneTaskDetail"
MODEL, SERVICE = "/model/aiApplication/createAiApplication", "/model/modelServer/createModelInferenceServer"


@case("AUTH-001")
def no_credentials(scene: Scene) -> Any:
    response = scene.post(CREATE, client=scene.anonymous)
    assert response["WWW-Authenticate"]
    return response


@case("AUTH-002")
def malformed_token(scene: Scene) -> Any:
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION="Bearer ' OR 1=1--")
    return scene.post(CREATE, client=client)


@case("AUTH-003")
def a_key_that_was_just_revoked(scene: Scene) -> Any:
    key, secret = create_own_api_key(actor=scene.alice, name="k")
    revoke_own_api_key(actor=scene.alice, key_id=key.pk)
    body = json.dumps({"model": "live", "messages": []}).encode()
    exchange = Exchange("POST", "/openai/v1/chat/completions", {"Authorization": f"Bearer {secret}"}, body)
    async_to_sync(exchange.go)(Gateway())
    assert (exchange.status, exchange.headers["www-authenticate"]) == (401, 'Bearer realm="clavier"')
    return Later(exchange.json["error"]["code"], exchange.json["error"]["message"])


@case("AUTH-004")
def expired_session(scene: Scene) -> Any:
    client = APIClient()
    client.force_login(User.objects.get(pk=scene.alice.user_id))
    sessions = Session.objects.filter(pk=client.cookies[settings.SESSION_COOKIE_NAME].value)
    sessions.update(expire_date=timezone.now() - timedelta(days=1))
    return scene.post(LIST, client=client)


@case("AUTH-005")
def another_tenants_user(scene: Scene) -> Any:
    return scene.post(LIST, {"userId": str(scene.victim.pk), "pageNum": 1, "pageSize": 10})


@case("AUTH-006")
def a_user_that_does_not_exist(scene: Scene) -> Any:
    unknown, real = scene.post(LIST, {"userId": "999999999"}), another_tenants_user(scene)
    bodies = [{**response.json(), "request_id": ""} for response in (unknown, real)]
    assert bodies[0] == bodies[1]
    return unknown


@case("AUTH-009")
def nested_creator_differs(scene: Scene) -> Any:
    body = scene.bodies[MODEL]
    versions = [{**body["aiApplicationVersionList"][0], "createUser": str(scene.victim.pk)}]
    application = {**body["application"], "createUser": str(scene.alice.user_id)}
    return scene.post(MODEL, {"application": application, "aiApplicationVersionList": versions})


@case("AUTH-014")
def another_tenants_model(scene: Scene) -> Any:
    return scene.post(CREATE, {"modelVersionId": scene.victims["model_version"]})


@case("AUTH-016")
def another_tenants_image(scene: Scene) -> Any:
    return scene.post(CREATE, {"createWay": "custom", "command": "true", "image": scene.victims["image"]})


@case("AUTH-018")
def a_group_without_a_grant(scene: Scene) -> Any:
    return scene.post(CREATE, {"resourceGroupKey": "resourceGroupOBwEzW5u6RjazuzI"})


@case("AUTH-019")
def another_tenants_file_as_a_volume(scene: Scene) -> Any:
    versions = [{**scene.bodies[SERVICE]["modelServerVersions"][0], "volumes": '[{"src":"/../two/data","dst":"/dd"}]'}]
    return scene.post(SERVICE, {"modelServerVersions": versions})


@case("AUTH-021")
def method_override(scene: Scene) -> Any:
    url = f"/model/aiApplication/getAiApplicationDetail?aiApplicationId={scene.victims['own_model']}"
    response = scene.client.get(url, HTTP_X_HTTP_METHOD_OVERRIDE="DELETE", **ENGLISH)
    assert scene.client.get(url, **ENGLISH).status_code == 200
    return response


@case("AUTH-022")
def spoofed_proxy_headers(scene: Scene) -> Any:
    spoofed = {"HTTP_X_FORWARDED_FOR": "127.0.0.1", "HTTP_X_REAL_IP": "127.0.0.1", "HTTP_X_FORWARDED_USER": "admin"}
    return scene.post(LIST, client=scene.anonymous, **spoofed)


@case("AUTH-023")
def forged_host(scene: Scene) -> Any:
    return Client().post("/accounts/password/reset", {"email": "a@b.c"}, HTTP_HOST="evil.example")


@case("AUTH-025")
def many_wrong_passwords(scene: Scene) -> Any:
    credentials = {"username": "alice", "password": "wrong"}
    for _ in range(100):
        response = Client().post("/accounts/login", credentials, HTTP_ACCEPT="application/json")
    assert response["Retry-After"]
    right = {**credentials, "password": "alice-secret-1"}
    assert Client(REMOTE_ADDR="10.1.2.3").post("/accounts/login", right).status_code == 302
    return response


@case("AUTH-026")
def operator_without_the_header(scene: Scene) -> Any:
    return scene.post(LIST, {"userId": str(scene.victim.pk)}, client=scene.operator)


@case("AUTH-027")
def deleted_object(scene: Scene) -> Any:
    task_id = scene.post(CREATE, {"name": "to be deleted"}).json()["data"]["taskId"]
    scene.client.post(f"/api/v1/fine-tune-tasks/{task_id}/stop", {}, format="json")
    assert scene.client.delete(f"/api/v1/fine-tune-tasks/{task_id}").status_code == 204
    return scene.client.post(f"{DETAIL}?taskId={task_id}", **ENGLISH)
