"""Who a request is for. The credential decides; a body may only repeat it, and an operator says so in a header."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from uuid import UUID

from django.db.models import Q
from rest_framework.request import Request

from clavier.accounts.auth import actor_of_user
from clavier.accounts.models import User
from clavier.api.legacy.errors import IDENTITY_MISMATCH, spoken
from clavier.api.legacy.words import say
from clavier.audit.records import act_for, record
from clavier.core.actor import Actor
from clavier.core.errors import Forbidden, NotFound, quoted

ACT_AS = "X-Act-As"


@dataclass(frozen=True, slots=True)
class Person:
    """Whom a body may name: the caller, or the user for whom an operator acts."""

    actor: Actor
    #: The caller is an operator who acts for nobody (yet).
    is_operator: bool
    operator: Actor | None = None


def person_of(request: Request) -> Person:
    """The caller, or whom X-Act-As names when an operator sends it. Raises Forbidden, NotFound."""
    actor = request.auth
    assert isinstance(actor, Actor)  # HasTenant let the request pass
    caller = Person(actor, actor.is_operator)
    name = request.headers.get(ACT_AS, "")
    if not name or names_person(name, caller):
        return caller
    if not actor.is_operator:
        raise spoken(Forbidden(f"{ACT_AS}: {mismatch(caller)}", code=IDENTITY_MISMATCH, field=ACT_AS))
    return Person(acting_for(request, actor, name), False, operator=actor)


def acting_for(request: Request, operator: Actor, name: str) -> Actor:
    """The user of that id or name, with its own rights in its own tenant; the audit log says so. Raises NotFound."""
    by_name = Q(username=name)
    with suppress(ValueError):  # no id, so it can only be a name
        by_name |= Q(pk=UUID(name))
    user = User.objects.filter(by_name, is_active=True).first()
    actor = actor_of_user(user) if user else None
    if user is None or actor is None:
        message = say(f"{ACT_AS}: 没有用户 {quoted(name)}", f"{ACT_AS}: there is no user {quoted(name)}.")
        raise spoken(NotFound(message, field=ACT_AS))
    act_for(user.username)
    record(user, "act_for", method=request.method, path=request.path)
    return replace(actor, scopes=operator.scopes, api_key_id=operator.api_key_id)


def names_person(name: str, person: Person) -> bool:
    """Whether an id or a user name means the person."""
    return name.lower() == str(person.actor.user_id) or name == person.actor.username


def mismatch(person: Person) -> str:
    """The refusal of another user's name; the same for every name."""
    if person.is_operator:
        return say(
            f"与登录用户不一致；管理员代其他用户操作时须携带请求头 {ACT_AS}",
            f"is not the signed-in user; an operator who acts for another sends the header {ACT_AS}.",
        )
    return say(
        "与登录用户不一致；请去掉该参数或填写本人的ID", "is not the signed-in user; leave it out or send your own."
    )
