"""Users, roles, keys, and what each of them may do."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.forms import model_to_dict
from django.utils import timezone

from clavier.accounts.access import access_object, require_change
from clavier.accounts.auth import actor_of_key
from clavier.accounts.models import ApiKey, Membership, Tenant, User
from clavier.accounts.services import (
    change_role,
    create_own_api_key,
    create_user,
    ensure_first_operator,
    invite_member,
    remove_member,
    revoke_own_api_key,
)
from clavier.core.errors import Conflict, Forbidden, Invalid, NotAuthenticated, NotFound
from models_app.models import RegisteredModel
from tests.conftest import actor_of

pytestmark = pytest.mark.django_db


def test_the_first_user_of_a_tenant_owns_it_and_the_next_is_a_member(alice, bob):
    assert (alice.role, bob.role) == ("owner", "member")


def test_a_name_is_taken_in_any_case(alice_user):
    with pytest.raises(Conflict, match="exists"):
        create_user(username="ALICE", tenant_name="other", password="a-good-password")
    assert not Tenant.objects.filter(name="other").exists()


@pytest.mark.parametrize(
    ("username", "tenant", "password", "code"),
    [
        ("a b", "t", "a-good-password", "bad_name"),
        ("dora", "Not A Name", "a-good-password", "bad_name"),
        ("dora", "t\n", "a-good-password", "bad_name"),
        ("dora", "t", "short", "bad_password"),
        ("dora-the-user", "t", "dora-the-user", "bad_password"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_left_behind(username, tenant, password, code):
    with pytest.raises(Invalid) as refusal:
        create_user(username=username, tenant_name=tenant, password=password)
    assert refusal.value.code == code
    assert not User.objects.exists()
    assert not Tenant.objects.exists()


def test_a_key_acts_for_its_user_until_it_is_revoked_or_expires(alice):
    key, secret = create_own_api_key(actor=alice, name="laptop")
    assert actor_of_key(secret)[1].user_id == alice.user_id
    assert secret not in json.dumps(list(ApiKey.objects.values("prefix", "digest", "name")))
    ApiKey.objects.filter(pk=key.pk).update(expires_at=timezone.now() - timedelta(seconds=1))
    with pytest.raises(NotAuthenticated, match="expired"):
        actor_of_key(secret)
    ApiKey.objects.filter(pk=key.pk).update(expires_at=None)
    revoke_own_api_key(actor=alice, key_id=key.pk)
    with pytest.raises(NotAuthenticated, match="revoked"):
        actor_of_key(secret)


def test_a_key_brings_the_rows_that_the_tables_hold(alice):
    key, secret = create_own_api_key(actor=alice, name="laptop", scopes=["read"])
    User.objects.filter(pk=alice.user_id).update(
        first_name="Alice", email="alice@example.org", last_login=timezone.now()
    )

    user, actor = actor_of_key(secret)

    assert model_to_dict(user) == model_to_dict(User.objects.get(pk=alice.user_id))
    assert (user.pk, user._state.adding, user._state.db) == (alice.user_id, False, "default")
    assert actor == replace(alice, scopes=frozenset({"read"}), api_key_id=key.pk)


def test_a_key_opens_nothing_once_its_user_has_left_the_tenant(alice):
    _, secret = create_own_api_key(actor=alice, name="laptop")
    Membership.objects.filter(user=alice.user_id).delete()
    with pytest.raises(NotAuthenticated, match="no longer active"):
        actor_of_key(secret)


def test_a_key_never_gets_a_scope_that_its_maker_lacks(alice):
    _, secret = create_own_api_key(actor=alice, name="narrow", scopes=["read", "write"])
    narrow = actor_of_key(secret)[1]
    with pytest.raises(Forbidden, match="inference"):
        create_own_api_key(actor=narrow, name="wider", scopes=["inference"])
    assert create_own_api_key(actor=narrow, name="same")[0].scopes == ["read", "write"]


def test_charlie_can_not_revoke_a_key_of_alice(alice, charlie):
    key, secret = create_own_api_key(actor=alice, name="laptop")
    with pytest.raises(NotFound):
        revoke_own_api_key(actor=charlie, key_id=key.pk)
    assert actor_of_key(secret)


def test_bob_the_member_can_not_invite_and_alice_the_owner_can(alice, bob, charlie_user):
    with pytest.raises(Forbidden):
        invite_member(actor=bob, username="charlie", role="member")
    assert invite_member(actor=alice, username="charlie", role="viewer").role == "viewer"
    with pytest.raises(Conflict):
        invite_member(actor=alice, username="charlie", role="viewer")


def test_an_admin_does_not_make_owners_and_the_last_owner_stays(alice, bob, bob_user):
    change_role(actor=alice, username="bob", role="admin")
    admin = actor_of(bob_user)
    with pytest.raises(Forbidden, match="Only owners"):
        change_role(actor=admin, username="bob", role="owner")
    with pytest.raises(Forbidden, match="Only owners"):
        remove_member(actor=admin, username="alice")
    with pytest.raises(Conflict, match="needs an owner"):
        remove_member(actor=alice, username="alice")


def test_a_removed_member_loses_its_keys_at_once(alice, bob):
    _, secret = create_own_api_key(actor=bob, name="laptop")
    remove_member(actor=alice, username="bob")
    with pytest.raises(NotAuthenticated, match="revoked"):
        actor_of_key(secret)


def test_charlie_gets_the_same_answer_for_an_object_of_alice_and_for_none(alice, charlie):
    model = RegisteredModel.objects.create(tenant_id=alice.tenant_id, created_by_id=alice.user_id, name="m")
    answers = []
    for wanted in (model.pk, "00000000-0000-4000-8000-000000000000", "no uuid"):
        with pytest.raises(NotFound) as refusal:
            access_object(RegisteredModel.objects.all(), charlie, wanted, noun="model")
        answers.append(refusal.value.message.replace(str(wanted), "X"))
    assert len(set(answers)) == 1


def test_bob_reads_but_does_not_change_what_alice_made(alice, bob):
    model = RegisteredModel.objects.create(tenant_id=alice.tenant_id, created_by_id=alice.user_id, name="m")
    assert access_object(RegisteredModel.objects.all(), bob, model.pk, noun="model") == model
    with pytest.raises(Forbidden, match="another member"):
        require_change(bob, model, noun="model")


def test_create_user_prints_one_json_line_and_refuses_the_same_name():
    out = StringIO()
    call_command("create_user", "dora", "--tenant", "team-d", "--password", "a-good-password", "--json", stdout=out)
    facts = json.loads(out.getvalue())
    assert set(facts) == {"user_id", "username", "tenant", "api_key"}
    assert str(actor_of_key(facts["api_key"])[0].pk) == facts["user_id"]
    with pytest.raises(CommandError, match="'dora' exists"):
        call_command("create_user", "dora", "--tenant", "team-d", "--password", "a-good-password", "--json")
    assert User.objects.count() == 1


def test_the_first_operator_has_a_random_password_that_is_told_once():
    password = ensure_first_operator()
    operator = User.objects.get(is_staff=True)
    assert password
    assert operator.check_password(password)
    assert ensure_first_operator() is None
