"""A user's own program: what is stored of it, what is refused of it, and how a run of it is put together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import UUID

from django.conf import settings

from clavier.core.actor import Actor
from clavier.core.errors import DomainError, Invalid, Unprocessable
from clavier.core.problems import Problems
from clavier.files.adoption import adopt_folder
from clavier.files.folders import disk_path, own_folder, parse_location
from clavier.files.models import StoredFile
from clavier.files.queries import row_at
from clavier.quotas.models import Node
from clavier.runs import commands
from clavier.runs.models import Run, RunEvent
from clavier.runs.outputs import run_folder
from clavier.runs.states import RunState
from runner.contract import folder
from runner.contract.run_spec import Mount, WorkItem

#: Where a copy of the code folder lies, and the program starts; relative to ``work/``.
CODE = "code"
CONFIG = "config.json"
DATA = "data"
#: What a folder in an object store begins with: ``s3://store/bucket/prefix``.
STORED = "s3://"
#: A data folder holds these and nothing else.
SPLITS = ("train", "validate", "test")


@dataclass(frozen=True, slots=True)
class OwnCode:
    """What a task or service keeps of its owner's program. Folders: ``private/...`` or ``public/...`` of its files.

    ``data_folder``, ``model_folder``: also ``s3://store/bucket/prefix``; then ``staged_run`` has fetched them.
    ``output_folder``, ``checkpoint_folder``: where the run's output and checkpoints appear when it has ended.
    Of a fine-tune only: ``profile_path``, and which hyperparameters its profile listed as those of fine-tuning.
    """

    command: str
    code_folder: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    data_folder: str = ""
    model_folder: str = ""
    output_folder: str = ""
    checkpoint_folder: str = ""
    staged_run: str = ""
    profile_path: str = ""
    fine_tune_names: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A plain dict that ``from_json`` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> OwnCode:
        """The own code of a stored dict. Raises TypeError on unknown keys."""
        return cls(**{**value, "fine_tune_names": tuple(value.get("fine_tune_names", ()))})


@dataclass(frozen=True, slots=True)
class Inputs:
    """What one run reads. ``model_dir``: a host path; ``input_dir``: one too, or relative to the run's ``work/``.

    ``config``: the words of its config.json.
    """

    model_dir: str | None = None
    input_dir: str | None = None
    config: str | None = None
    mounts: tuple[Mount, ...] = ()
    work: tuple[WorkItem, ...] = ()


@dataclass(frozen=True, slots=True)
class CommandParts:
    """The parts of a RunSpec that make it run a command."""

    argv: tuple[str, ...]
    environment: dict[str, str]
    mounts: tuple[Mount, ...]
    work: tuple[WorkItem, ...]
    start_in: str


def require_allowed(*, has_image: bool, resource_group: str = "") -> None:
    """Raises Unprocessable (``needs_container``) where programs of users need a container, or find no node with one."""
    if has_image:
        nodes = Node.objects.filter(resource_group__name=resource_group or "default")
        if not nodes.filter(executor__in=settings.CONTAINER_EXECUTORS).exists():
            raise Unprocessable(
                f"The resource group {resource_group or 'default'!r} has no node that runs containers, so no image can "
                "be used there. Choose another group, or leave the image out.",
                code="needs_container",
                field="image",
            )
    elif not settings.ALLOW_CUSTOM_CODE:
        raise Unprocessable(
            "This installation runs users' own programs in containers only. Choose an image of yours.",
            code="needs_container",
            field="image",
        )


def checked_own_code(
    actor: Actor,
    problems: Problems,
    *,
    command: str,
    known: Iterable[str],
    code_folder: str = "",
    environment: Mapping[str, Any] | None = None,
    data_folder: str = "",
    model_folder: str = "",
    output_folder: str = "",
    checkpoint_folder: str = "",
    has_splits: bool = False,
) -> OwnCode:
    """The own code with its folders looked up; what is refused is added to ``problems``.

    ``known``: what the command may name as ``${...}``. ``has_splits``: the data folder is one of train, validate, test.
    Folders in object stores are looked at by the run that fetches them.
    """
    words = problems.check(commands.split_command, command)
    if words is not None:
        problems.check(commands.check_placeholders, words, known)
    variables = problems.check(commands.checked_environment, environment or {})
    places = {"code_folder": code_folder, "data_folder": data_folder, "model_folder": model_folder}
    rows = {
        name: problems.check(own_folder, actor, location, field=name)
        for name, location in places.items()
        if location and not (name != "code_folder" and is_stored(location))
    }
    data = rows.get("data_folder")
    if data is not None and has_splits:
        problems.check(check_splits, data, field="data_folder")
    for name, location in (("output_folder", output_folder), ("checkpoint_folder", checkpoint_folder)):
        if location:
            problems.check(require_place, actor, location, field=name)
    return OwnCode(
        command=command.strip(),
        environment=variables or {},
        output_folder=output_folder,
        checkpoint_folder=checkpoint_folder,
        code_folder=code_folder,
        data_folder=data_folder,
        model_folder=model_folder,
    )


def require_place(actor: Actor, location: str, *, field: str) -> None:
    """Raises Invalid unless a folder is there or can be made there."""
    area, parts = parse_location(location, field=field)
    for depth in range(1, len(parts) + 1):
        row = row_at(actor.tenant_id, actor.user_id, area, parts[:depth])
        if row is not None and not row.is_folder:
            raise Invalid(
                f"{field} {location!r}: {row.path} is a file; give a folder, which may be a new one.",
                code="bad_value",
                field=field,
            )


def placeholders(*, has_model: bool, has_input: bool, has_config: bool = False) -> list[str]:
    """The folders that a command may name, by what its run has."""
    missing = {"model_dir": not has_model, "input_dir": not has_input, "config": not has_config}
    return [name for name in commands.FOLDER_PLACEHOLDERS if not missing.get(name)]


def local_inputs(actor: Actor, code: OwnCode) -> Inputs:
    """What the code's own folders give a run; they are read where they lie, or were fetched to.

    Raises NotFound, Invalid.
    """
    paths = {
        name: str(
            run_folder(UUID(code.staged_run)) / folder.OUTPUT / name
            if is_stored(location)
            else disk_path(actor, own_folder(actor, location, field=name))
        )
        for name, location in (("data_folder", code.data_folder), ("model_folder", code.model_folder))
        if location
    }
    return Inputs(
        model_dir=paths.get("model_folder"),
        input_dir=paths.get("data_folder"),
        mounts=tuple(Mount(path) for path in paths.values()),
    )


def is_stored(location: str) -> bool:
    """It lies in an object store."""
    return location.startswith(STORED)


def stored_folders(code: OwnCode) -> dict[str, str]:
    """The folders that must be fetched before the code can run: field -> location."""
    places = {"data_folder": code.data_folder, "model_folder": code.model_folder}
    return {name: location for name, location in places.items() if is_stored(location)}


def command_parts(
    actor: Actor,
    code: OwnCode,
    *,
    run_id: UUID,
    inputs: Inputs,
    hyperparameters: Mapping[str, str] | None = None,
    more: Mapping[str, str] | None = None,
) -> CommandParts:
    """The command of one run with every placeholder replaced.

    A hyperparameter that the command does not name itself is appended as ``--name value``, unless the command names
    ``${config}``, where it stands too. Each is also the variable ``HP_<NAME>``. Raises NotFound, Invalid.
    """
    root = run_folder(run_id)
    start_in = f"{folder.WORK}/{CODE}" if code.code_folder else folder.WORK
    places = {
        "model_dir": inputs.model_dir,
        "input_dir": str(root / folder.WORK / inputs.input_dir) if inputs.input_dir else None,
        "output_dir": str(root / folder.OUTPUT),
        "checkpoint_dir": str(root / folder.CHECKPOINTS),
        "work_dir": str(root / start_in),
        "config": str(root / folder.WORK / CONFIG) if inputs.config is not None else None,
    }
    known = {name: path for name, path in places.items() if path is not None}
    values = hyperparameters or {}
    words = commands.split_command(code.command)
    named = commands.placeholders_in(words)
    unnamed = {} if "config" in named else {name: value for name, value in values.items() if name not in named}
    flags = [word for name, value in unnamed.items() for word in (f"--{name}", value)]
    work = list(inputs.work)
    if code.code_folder:
        source = disk_path(actor, own_folder(actor, code.code_folder, field="code_folder"))
        work.append(WorkItem(CODE, copy_of=str(source)))
    if inputs.config is not None:
        work.append(WorkItem(CONFIG, text=inputs.config))
    return CommandParts(
        argv=(*commands.fill(words, {**values, **known, **(more or {})}), *flags),
        environment={
            **{f"CLAVIER_{name.upper()}": path for name, path in known.items()},
            **{f"HP_{name.upper()}": value for name, value in values.items()},
            **code.environment,
        },
        mounts=inputs.mounts,
        work=tuple(work),
        start_in=start_in,
    )


def publish(owner: Actor, run: Run, code: OwnCode) -> None:
    """Make an ended run's output and checkpoints files of the owner, where its own code says. In its transaction.

    Raises DomainError for a completed run whose files do not fit; of any other end that is only noted.
    """
    wanted = (
        (folder.OUTPUT, code.output_folder, "output_folder"),
        (folder.CHECKPOINTS, code.checkpoint_folder, "checkpoint_folder"),
    )
    for name, location, field_name in wanted:
        source = run_folder(run.pk) / name
        if not location or not source.is_dir():
            continue
        try:
            adopt_folder(
                actor=owner,
                location=location,
                source=source,
                field=field_name,
                skip=frozenset({folder.MANIFEST}),
            )
        except DomainError as refusal:
            if run.state == RunState.COMPLETED:
                raise
            RunEvent.objects.create(run=run, message=f"{name} was not copied to {location}: {refusal.message}")


def data_inputs(train: str | None, validation: str | None, test: str | None = None) -> Inputs:
    """Rows of data set versions (host paths) laid out as a data folder is: ``data/train/train.jsonl`` and so on."""
    paths = dict(zip(SPLITS, (train, validation, test), strict=True))
    given = {split: path for split, path in paths.items() if path is not None}
    return Inputs(
        input_dir=DATA if given else None,
        mounts=tuple(Mount(path) for path in given.values()),
        work=tuple(WorkItem(f"{DATA}/{split}/{split}.jsonl", link_to=path) for split, path in given.items()),
    )


def check_splits(row: StoredFile, *, field: str) -> None:
    """A data folder holds train, validate and test, and nothing else. Raises Invalid (``bad_layout``)."""
    inside = StoredFile.objects.filter(
        tenant_id=row.tenant_id, created_by_id=row.created_by_id, area=row.area, parent=row.path
    )
    found = dict(inside.values_list("name", "is_folder")[:100])
    missing = [split for split in SPLITS if not found.get(split)]
    others = sorted(set(found) - set(SPLITS))
    if missing or others:
        wrong = f"{', '.join(missing)} missing" if missing else f"{', '.join(others[:5])} too much"
        raise Invalid(
            f"{field} {row.area}/{row.path} must hold the folders {', '.join(SPLITS)} and nothing else: {wrong}.",
            code="bad_layout",
            field=field,
        )
