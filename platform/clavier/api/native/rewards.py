"""A deployed service as the reward of reinforcement learning: its name in a body, and the model that it stands for."""

from __future__ import annotations

from typing import Any

from clavier.api.native.fields import Text
from clavier.core.actor import Actor
from clavier.core.errors import Invalid
from inference_app.queries import scoring_model


class RewardService(Text):
    """A service that scores, in place of ``reward_model``; ``with_reward`` looks it up."""

    def __init__(self) -> None:
        super().__init__(
            required=False, max_length=80,
            help_text="Of rl, instead of reward_model: a service that scores, `judge`, `judge@2`; its model is loaded.",
        )  # fmt: skip


def with_reward(actor: Actor, body: dict[str, Any]) -> dict[str, Any]:
    """A body whose ``reward_service`` has become the ``reward_model`` that it serves.

    Raises NotFound, Invalid (``conflicting_fields``, ``wrong_task``, ``ambiguous``).
    """
    service = body.pop("reward_service", None)
    if service is None:
        return body
    if body.get("reward_model") is not None:
        message = "reward_service: give it or reward_model, not both."
        raise Invalid(message, code="conflicting_fields", field="reward_service")
    return body | {"reward_model": scoring_model(actor, service, field="reward_service").pk}
