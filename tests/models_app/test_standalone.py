"""Exports of versions: who may, of what, and what becomes of the new version."""

from __future__ import annotations

from typing import Any

import pytest

from clavier.core.actor import Actor
from clavier.core.errors import Conflict, Invalid, NotFound
from models_app.models import ModelVersion
from models_app.services import require_usable
from models_app.standalone import export_version
from tests.engine import Engine, make_engine
from tests.worlds import FACTS, make_model_version, output_of


@pytest.fixture
def engine(alice: Actor, monkeypatch: pytest.MonkeyPatch) -> Engine:
    return make_engine(monkeypatch)


@pytest.fixture
def adapter(alice: Actor) -> ModelVersion:
    base = make_model_version(alice, "base")
    return make_model_version(alice, "tuned", format="adapter", base_version=base)


def test_a_merged_adapter_becomes_a_version_of_its_own_with_its_lineage(
    engine: Engine, adapter: ModelVersion, alice: Actor
) -> None:
    engine.will(files=output_of(FACTS))
    made = export_version(actor=alice, version=adapter, form="merged")
    assert (made.state, made.source, made.number, made.base_version) == ("importing", "export", 2, adapter.base_version)
    assert made.run is not None
    parameters = made.run.spec["parameters"]
    assert adapter.base_version is not None
    assert parameters["model"] == str(adapter.base_version.path)
    assert parameters["adapter"] == str(adapter.path)
    engine.step(3)
    made.refresh_from_db()
    assert (made.state, made.format) == ("ready", "full")
    require_usable(made)


def test_a_gguf_version_is_for_download_only(engine: Engine, adapter: ModelVersion, alice: Actor) -> None:
    engine.will(files=output_of({**FACTS, "format": "gguf"}, **{"model/model.gguf": "GGUF"}))
    made = export_version(actor=alice, version=adapter, form="gguf", name="for-ollama", precision="f16")
    engine.step(3)
    made = ModelVersion.objects.get(pk=made.pk)
    assert (made.model.name, made.state, made.format) == ("for-ollama", "ready", "gguf")
    require_usable(made, for_download=True)
    with pytest.raises(Conflict, match="to be downloaded"):
        require_usable(made)


def test_an_export_that_fails_leaves_a_failed_version_with_the_reason(
    engine: Engine, adapter: ModelVersion, alice: Actor
) -> None:
    engine.will(exit_code=64)
    made = export_version(actor=alice, version=adapter, form="merged")
    engine.step(3)
    made.refresh_from_db()
    assert made.state == "failed"
    assert made.message


@pytest.mark.parametrize(
    ("options", "error", "code"),
    [
        ({"form": "zip"}, Invalid, "not_a_choice"),
        ({"form": "merged", "precision": "f16"}, Invalid, "not_a_choice"),
        ({"form": "gguf", "precision": "q1"}, Invalid, "not_a_choice"),
        ({"form": "gguf", "name": "../x"}, Invalid, "bad_name"),
    ],
)
def test_a_wrong_order_is_refused(
    adapter: ModelVersion, alice: Actor, options: dict[str, Any], error: type[Exception], code: str
) -> None:
    with pytest.raises(error) as refused:
        export_version(actor=alice, version=adapter, **options)
    assert getattr(refused.value, "code", None) == code
    assert ModelVersion.objects.count() == 2


def test_only_adapters_are_merged_and_charlie_exports_nothing_of_alice(
    adapter: ModelVersion, alice: Actor, charlie: Actor
) -> None:
    assert adapter.base_version is not None
    with pytest.raises(Conflict, match="full model already"):
        export_version(actor=alice, version=adapter.base_version, form="merged")
    with pytest.raises(NotFound):
        export_version(actor=charlie, version=adapter, form="gguf")
