"""The caller, the tenant's members, API keys, sessions, and what may be used."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib.auth import authenticate, login, logout
from django.middleware.csrf import get_token
from drf_spectacular.utils import OpenApiExample
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from clavier.accounts.auth import actor_of_user
from clavier.accounts.models import ApiKey, User
from clavier.accounts.queries import members, own_api_keys
from clavier.accounts.services import change_role, create_own_api_key, invite_member, remove_member, revoke_own_api_key
from clavier.api.common.idempotency import idempotent
from clavier.api.native.fields import Choice, Strict, Text
from clavier.api.native.schema import operation
from clavier.api.native.views import NativeView
from clavier.core.actor import ROLES, SCOPES, Actor
from clavier.core.errors import Forbidden, NotAuthenticated
from clavier.quotas.queries import quota_of

_ROLE_HELP = "What the member may do: viewers read, members create, admins and owners change what others created."


class UserPart(serializers.Serializer[Any]):
    id = serializers.UUIDField(source="user_id")
    username = serializers.CharField()
    is_operator = serializers.BooleanField(help_text="Runs this installation.")


class TenantPart(serializers.Serializer[Any]):
    id = serializers.UUIDField(source="tenant_id")
    name = serializers.CharField(source="tenant_name")
    role = serializers.ChoiceField(ROLES, help_text="The caller's role in it.")


class Me(serializers.Serializer[Any]):
    """Who the credential stands for."""

    user = UserPart(source="*")
    tenant = TenantPart(source="*")
    scopes = serializers.SerializerMethodField(help_text="What the credential may do.")

    def get_scopes(self, actor: Actor) -> list[str]:
        """In alphabetical order."""
        return sorted(actor.scopes)


class Member(serializers.Serializer[Any]):
    """A user of the tenant."""

    username = serializers.CharField(source="user.username")
    role = serializers.ChoiceField(ROLES, help_text=_ROLE_HELP)
    created_at = serializers.DateTimeField(help_text="Since when.")


class NewMember(Strict):
    username = Text(max_length=150, help_text="An existing user.")
    role = Choice(ROLES, default="member", help_text=_ROLE_HELP)


class NewRole(Strict):
    role = Choice(ROLES, help_text=_ROLE_HELP)


class Key(serializers.ModelSerializer[ApiKey]):
    """An API key, without its secret."""

    scopes = serializers.ListField(child=serializers.ChoiceField(SCOPES))

    class Meta:
        model = ApiKey
        fields = ("id", "name", "prefix", "scopes", "created_at", "expires_at", "revoked_at", "last_used_at")


class KeyWithSecret(Key):
    """A new API key."""

    secret = serializers.CharField(allow_null=True, help_text="The key itself: shown now and never again.")

    class Meta(Key.Meta):
        fields = (*Key.Meta.fields, "secret")  # type: ignore[assignment]


class NewKey(Strict):
    name = Text(max_length=100, help_text="What it is for.")
    scopes = serializers.ListField(
        child=Choice(SCOPES), required=False, help_text="What it may do; absent: all that your credential may."
    )
    expires_at = serializers.DateTimeField(required=False, allow_null=True, help_text="Absent: never.")


class SignIn(Strict):
    username = Text(max_length=150)
    password = Text(max_length=4096)


class Session(serializers.Serializer[Any]):
    """A started session; its cookie is set."""

    user = UserPart()
    tenant = TenantPart()
    csrf_token = serializers.CharField(help_text="Send it as X-CSRFToken with every request that changes something.")


class Limit(serializers.Serializer[Any]):
    scope = serializers.ChoiceField(("tenant", "user"), help_text="Whose limit it is.")
    resource = serializers.CharField(
        help_text="`running_runs`, `cpu_milli`, `memory_mib`, `gpus`, `vgpus` or `mig_devices`."
    )
    cap = serializers.IntegerField()
    used = serializers.IntegerField()
    remaining = serializers.IntegerField()


class Storage(serializers.Serializer[Any]):
    bytes_used = serializers.IntegerField()
    bytes_limit = serializers.IntegerField()
    bytes_remaining = serializers.IntegerField()
    inodes_used = serializers.IntegerField(help_text="Files and folders.")
    inodes_limit = serializers.IntegerField()
    inodes_remaining = serializers.IntegerField()


class TenantStorage(Storage):
    """A limit of null is none."""

    bytes_limit = serializers.IntegerField(allow_null=True)
    bytes_remaining = serializers.IntegerField(allow_null=True)
    inodes_limit = serializers.IntegerField(allow_null=True)
    inodes_remaining = serializers.IntegerField(allow_null=True)


class Window(serializers.Serializer[Any]):
    """Outside it no new run starts; running ones go on."""

    valid_from = serializers.DateTimeField(allow_null=True)
    valid_until = serializers.DateTimeField(allow_null=True)
    is_open = serializers.BooleanField(help_text="Now.")


class Quota(serializers.Serializer[Any]):
    """What is left."""

    limits = Limit(many=True, help_text="What is not listed has no limit.")
    remaining = serializers.DictField(
        child=serializers.IntegerField(allow_null=True),
        help_text="By resource: the least of your limits, your tenant's and what the nodes have free; null: no limit.",
    )
    window = Window()
    is_init = serializers.BooleanField(help_text="Nobody ever set a quota for you or your tenant.")
    storage = Storage(help_text="Of your files, data sets and images.")
    tenant_storage = TenantStorage(help_text="Of all members together.")


class MeView(NativeView):
    @operation("get_me", "accounts", "Who the credential stands for", answer=Me)
    def get(self, request: Request) -> Response:
        """The actor."""
        return Response(Me(self.actor).data)


class MembersView(NativeView):
    @operation("list_members", "accounts", "List the members of the tenant", page_of=Member)
    def get(self, request: Request) -> Response:
        """Newest first."""
        self.filters()
        return self.page(members(self.actor), Member)

    @operation("add_member", "accounts", "Add an existing user to the tenant", body=NewMember, answer=Member,
               status=201, errors=(404, 409))  # fmt: skip
    @idempotent()
    def post(self, request: Request) -> Response:
        """Owners and admins only."""
        return Response(Member(invite_member(actor=self.actor, **self.body(NewMember))).data, status=201)


class MemberView(NativeView):
    @operation("change_member", "accounts", "Change a member's role", body=NewRole, answer=Member, errors=(404, 409))
    def patch(self, request: Request, username: str) -> Response:
        """Owners and admins only; the last owner stays."""
        return Response(Member(change_role(actor=self.actor, username=username, **self.body(NewRole))).data)

    @operation("remove_member", "accounts", "Take a member out of the tenant and revoke its keys", status=204,
               errors=(404, 409))  # fmt: skip
    def delete(self, request: Request, username: str) -> Response:
        """Owners and admins only; the last owner stays."""
        remove_member(actor=self.actor, username=username)
        return Response(status=204)


class ApiKeysView(NativeView):
    @operation("list_api_keys", "accounts", "List your API keys", page_of=Key)
    def get(self, request: Request) -> Response:
        """Newest first, revoked ones too."""
        self.filters()
        return self.page(own_api_keys(self.actor), Key)

    @operation("create_api_key", "accounts", "Create an API key; its secret is shown once", body=NewKey,
               answer=KeyWithSecret, status=201, errors=(409,), examples=(
                   OpenApiExample("For a program that only asks", {"name": "chat", "scopes": ["read", "inference"]},
                                  request_only=True),
               ))  # fmt: skip
    @idempotent(secrets=("secret",))
    def post(self, request: Request) -> Response:
        """A key never gets more scopes than the credential that makes it."""
        key, secret = create_own_api_key(actor=self.actor, **self.body(NewKey))
        return Response({**Key(key).data, "secret": secret}, status=201)


class ApiKeyView(NativeView):
    @operation("revoke_api_key", "accounts", "Revoke one of your API keys, at once", status=204, errors=(404,))
    def delete(self, request: Request, key_id: UUID) -> Response:
        """The key stays in the list as revoked."""
        revoke_own_api_key(actor=self.actor, key_id=key_id)
        return Response(status=204)


class SessionView(NativeView):
    """Sign-in by JSON, for programs that want a cookie. Wrong passwords are counted, and too many lock the door."""

    def perform_authentication(self, request: Request) -> None:
        """Not for the sign-in itself: an old cookie must not stand in its way."""
        if request.method != "POST":
            super().perform_authentication(request)

    def get_permissions(self) -> Any:
        """Everybody may try to sign in."""
        return [] if self.request.method == "POST" else super().get_permissions()

    @operation("sign_in", "accounts", "Sign in with a password and get a session cookie", body=SignIn, answer=Session,
               status=201, errors=(429,), is_public=True)  # fmt: skip
    def post(self, request: Request) -> Response:
        """Raises NotAuthenticated; the lock's 429 comes from its own middleware."""
        user = authenticate(request._request, **self.body(SignIn))
        if not isinstance(user, User):
            raise NotAuthenticated("The user name or the password is wrong.", code="invalid_credentials")
        actor = actor_of_user(user)
        if actor is None:
            raise Forbidden("You are a member of no active tenant. Ask an operator to add you to one.")
        login(request._request, user)
        found = {"user": actor, "tenant": actor, "csrf_token": get_token(request._request)}
        return Response(Session(found).data, status=201)

    @operation("sign_out", "accounts", "End the session", status=204)
    def delete(self, request: Request) -> Response:
        """With an API key there is no session, and nothing to end."""
        logout(request._request)
        return Response(status=204)


class QuotaView(NativeView):
    @operation("get_quota", "accounts", "What you and your tenant may still use", answer=Quota)
    def get(self, request: Request) -> Response:
        """Limits and storage."""
        return Response(Quota(quota_of(self.actor)).data)
