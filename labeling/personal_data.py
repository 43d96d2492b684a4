"""What is kept about one person: given out as a file, and erased.

An erasure takes the account away with everything that hangs on it, and puts a pseudonym in place of
the name wherever answers stand. The answers themselves stay, so no figure changes.
"""

import io
import json
import secrets
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from django.apps import apps
from django.contrib.auth import get_user_model
from django.contrib.sessions.models import Session
from django.core.serializers.json import DjangoJSONEncoder
from django.db import models, transaction
from django.db.models import F, Q, TextField
from django.db.models.functions import Cast
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from labeling.changes import note_event
from labeling.models import (
    Assignment,
    Change,
    Decision,
    Flag,
    Preference,
    Project,
    Ranking,
    Rater,
    Rating,
    RepeatAnswer,
)
from labeling.personal_files import forget_in_files, traces_in_files
from labeling.sealing import ERASURE, seal_changes
from labeling.sign_ins import forget_failures_of

SECRET_COLUMNS = {"password", "token_hash", "encrypted_secret", "encrypted_key", "request_hash"}
SECRET_MODELS = {"mfa.authenticator"}
"""Given out without what opens doors: of these the times alone."""
NAMED_IN = (
    *("labeling.AgreementReport", "labeling.Leaderboard", "labeling.Delivery", "labeling.Rating"),
    *("labeling.ImportJob", "judges.Experiment", "judges.JudgeRun", "judges.RoutingRun"),
    *("labeling.IdempotentRequest", "training.Dataset", "training.DatasetDraft"),
)
"""Models whose JSON holds names of raters as whole values or keys."""
REASONS_IN = (("labeling.Delivery", "payload"), ("labeling.IdempotentRequest", "body"))
"""Answers as they were told to programs, with their reasons."""
REASONS = {"rationale", "note", "skip_reason"}
TOLD_IN = (("training.RunEvent", "text"), ("admin.LogEntry", "object_repr"))
"""Lines that begin with a name."""
NOT_SEARCHED = {"labeling.prompt", "labeling.response", "labeling.comparison", "judges.verdict"}
"""What was imported or written by models: a name in there is not the rater."""


class CannotErase(Exception):
    """Why this person stays; the text is for the administrator."""


@dataclass
class Person:
    """An account with its raters in all projects; or raters from imports, without an account."""

    name: str
    user: Any = None
    raters: list[Rater] = field(default_factory=list)

    def __bool__(self) -> bool:
        return self.user is not None or bool(self.raters)


def find_person(name: str, project: Project | None = None) -> Person:
    """Who goes by this user name; else the imported raters of this name, of one project or all."""
    users = get_user_model()
    user = users.objects.filter(**{users.USERNAME_FIELD: name}).first()
    raters = Rater.objects.filter(kind=Rater.Kind.PERSON).select_related("project").order_by("pk")
    if user is not None:
        return Person(name, user, list(raters.filter(user=user)))
    raters = raters.filter(user=None, name=name)
    return Person(name, None, list(raters.filter(project=project) if project else raters))


# --- given out ---------------------------------------------------------------------------------


def held(person: Person) -> dict[str, int]:
    """How many rows of each table are about the person."""
    found = {label: rows.count() for label, rows in _tables(person)}
    return {label: n for label, n in found.items() if n}


def exported(person: Person) -> bytes:
    """A zip with a JSON file for each table: the account, and every row that points to it or to one
    of its raters."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for label, rows in _tables(person):
            told = [_without_secrets(label, row) for row in rows.values(*_columns(rows.model))]
            if told:
                text = json.dumps(told, cls=DjangoJSONEncoder, ensure_ascii=False, indent=1)
                archive.writestr(f"{label}.json", text)
    return file.getvalue()


def _tables(person: Person) -> Iterator[tuple[str, models.QuerySet]]:
    """(label, rows) of every table with rows about the person, those that nobody thought of too:
    whatever has a foreign key to an account or to a rater."""
    users = get_user_model()
    if person.user is not None:
        yield users._meta.label_lower, users._base_manager.filter(pk=person.user.pk)
    raters = [rater.pk for rater in person.raters]
    for model in sorted(apps.get_models(include_auto_created=True), key=lambda m: m._meta.label):
        about = Q()
        for column in model._meta.concrete_fields:
            if not column.is_relation:
                continue
            if column.related_model is users and person.user is not None:
                about |= Q((column.name, person.user.pk))
            elif column.related_model is Rater and raters:
                about |= Q((f"{column.name}__in", raters))
        if model is Rater:
            about = Q(pk__in=raters)
        if about:
            yield model._meta.label_lower, model._base_manager.filter(about).order_by("pk")


def _columns(model: type[models.Model]) -> list[str]:
    names = [column.attname for column in model._meta.concrete_fields]
    if any(column.name == "comparison" for column in model._meta.concrete_fields):
        names.append("comparison__external_id")
    return names


def _without_secrets(label: str, row: dict[str, Any]) -> dict[str, Any]:
    hidden = SECRET_COLUMNS | ({"data"} if label in SECRET_MODELS else set())
    return {name: value for name, value in row.items() if name not in hidden}


def export_person(person: Person, actor: Any) -> bytes:
    """`exported`, written down in the history."""
    content = exported(person)
    subject = person.user or person.name
    note_event(actor, gettext_noop("export rater"), subject)
    return content


# --- erased ------------------------------------------------------------------------------------


def why_not(person: Person, actor: Any) -> str:
    """Why this person cannot be erased; empty if they can."""
    if not person:
        return _("Nobody here goes by this name.")
    user = person.user
    if user is not None and actor is not None and user.pk == actor.pk:
        return _("Nobody erases themselves: another administrator can.")
    if user is not None and user.is_superuser and user.is_active:
        others = get_user_model().objects.filter(is_superuser=True, is_active=True)
        if not others.exclude(pk=user.pk).exists():
            return _("This is the last administrator: make another one first.")
    return ""


@transaction.atomic
def erase(person: Person, actor: Any, *, keep_reasons: bool = False) -> str:
    """Erase the person; the pseudonym that stands in their place.

    Answers stay, under the pseudonym. Reasons in free text go unless `keep_reasons`; better answers
    that the person wrote stay as demonstrations.
    Raises: CannotErase.
    """
    if reason := why_not(person, actor):
        raise CannotErase(reason)
    pseudonym = f"erased-{secrets.token_hex(4)}"
    raters = [rater.pk for rater in person.raters]
    names = {person.name} | {rater.name for rater in person.raters}
    forget_in_files(names, pseudonym)
    if not keep_reasons:
        _forget_reasons(person, raters)
        _forget_reasons_in_json(names)
    for rater in person.raters:
        rater.name, rater.paused_at = pseudonym, rater.paused_at or timezone.now()
        rater.save(update_fields=["name", "paused_at"])
    _rename_in_json(names, pseudonym)
    _rename_in_lines(names, pseudonym)
    redacted = _redact_history(names, pseudonym)
    forget_failures_of(person.name)
    if person.user is not None:
        _end_sessions(person.user)
        person.user.delete()  # with memberships, tokens, second factors and connections
    note_event(
        actor, ERASURE, pseudonym, reasons_kept=keep_reasons, redacted=redacted, raters=len(raters)
    )
    return pseudonym


def _forget_reasons(person: Person, raters: list[int]) -> None:
    Preference.objects.filter(rater__in=raters).exclude(rationale="").update(rationale="")
    RepeatAnswer.objects.filter(assignment__rater__in=raters).update(rationale="")
    Ranking.objects.filter(rater__in=raters).update(rationale="")
    Rating.objects.filter(rater__in=raters).update(rationale="")
    Flag.objects.filter(rater__in=raters).update(note="")
    Assignment.objects.filter(rater__in=raters).exclude(skip_reason="").update(skip_reason="")
    if person.user is not None:
        Decision.objects.filter(decided_by=person.user).update(note="")


def _forget_reasons_in_json(names: set[str]) -> None:
    for label, column in REASONS_IN:
        model = _model(label)
        for pk, value in list(_mentioning(model, column, names)) if model else ():
            model._base_manager.filter(pk=pk).update(**{column: _without_reasons(value, names)})


def _without_reasons(value: Any, names: set[str]) -> Any:
    """Without the reasons of answers that name one of them beside it."""
    if isinstance(value, list):
        return [_without_reasons(part, names) for part in value]
    if isinstance(value, dict):
        is_theirs = any(isinstance(part, str) and part in names for part in value.values())
        return {
            key: "" if is_theirs and key in REASONS else _without_reasons(part, names)
            for key, part in value.items()
        }
    return value


def _rename_in_json(names: set[str], pseudonym: str) -> None:
    for label in NAMED_IN:
        model = _model(label)
        for column in model._meta.concrete_fields if model else []:
            if not isinstance(column, models.JSONField):
                continue
            for pk, value in list(_mentioning(model, column.name, names)):
                renamed = _renamed(value, names, pseudonym)
                if renamed != value:
                    model._base_manager.filter(pk=pk).update(**{column.name: renamed})


def _rename_in_lines(names: set[str], pseudonym: str) -> None:
    for label, column in TOLD_IN:
        model = _model(label)
        for name in names if model else ():
            rows = model._base_manager.filter(
                Q((column, name)) | Q((f"{column}__startswith", f"{name} "))
            )
            for pk, text in list(rows.values_list("pk", column)):
                told = pseudonym + text[len(name) :]
                model._base_manager.filter(pk=pk).update(**{column: told})


def _redact_history(names: set[str], pseudonym: str) -> list[int]:
    """Take the names out of the history; the keys of its rows that said them. Their seals stay."""
    rows = Change._base_manager.annotate(
        told_before=Cast("before", TextField()), told_after=Cast("after", TextField())
    )
    about = Q()
    for name in names:
        about |= Q(subject__contains=name)
        for written in _as_json(name):
            about |= Q(told_before__contains=written) | Q(told_after__contains=written)
    seal_changes()
    redacted = []
    for row in rows.filter(about).order_by("pk"):
        subject = _renamed_in_text(row.subject, names, pseudonym)
        before = _renamed(row.before, names, pseudonym)
        after = _renamed(row.after, names, pseudonym)
        if (subject, before, after) != (row.subject, row.before, row.after):
            Change._base_manager.filter(pk=row.pk).update(
                subject=subject, before=before, after=after, salt="", redacted_at=timezone.now()
            )
            redacted.append(row.pk)
    return redacted


def _renamed_in_text(text: str, names: set[str], pseudonym: str) -> str:
    """A line with the name, alone or beside what else it names."""
    words = text.split(" ")
    if text in names:
        return pseudonym
    return " ".join(pseudonym if word.strip(".,:;()“”") in names else word for word in words)


def _renamed(value: Any, names: set[str], pseudonym: str) -> Any:
    if isinstance(value, str):
        return pseudonym if value in names else value
    if isinstance(value, list):
        return [_renamed(part, names, pseudonym) for part in value]
    if isinstance(value, dict):
        return {
            pseudonym if key in names else key: _renamed(part, names, pseudonym)
            for key, part in value.items()
        }
    return value


def _end_sessions(user: Any) -> None:
    """A session names its person only inside of what it holds."""
    for session in Session.objects.iterator():
        if session.get_decoded().get("_auth_user_id") == str(user.pk):
            session.delete()


def _model(label: str) -> type[models.Model] | None:
    """Of an app that may know us, though we do not know it."""
    app, _dot, name = label.partition(".")
    return apps.get_app_config(app).models.get(name.lower())


def _as_json(name: str) -> set[str]:
    """The name inside of JSON: databases write it with or without escapes."""
    return {json.dumps(name)[1:-1], json.dumps(name, ensure_ascii=False)[1:-1]}


def _mentioning(
    model: type[models.Model], column: str, names: set[str]
) -> Iterator[tuple[Any, Any]]:
    about = Q()
    for name in names:
        for written in {name, *_as_json(name)}:
            about |= Q(value_as_text__contains=written)
    rows = model._base_manager.annotate(value_as_text=Cast(F(column), TextField())).filter(about)
    yield from rows.values_list("pk", column)


# --- what is left ------------------------------------------------------------------------------


def traces(name: str) -> dict[str, int]:
    """{"app.model.column": rows} where a name still stands as a whole value or word: what an
    erasure does not reach, such as the texts of prompts, for a person to look at."""
    found: dict[str, int] = {}
    for model in apps.get_models(include_auto_created=True):
        label = model._meta.label_lower
        if label in NOT_SEARCHED or not model._meta.managed:
            continue
        for column in model._meta.concrete_fields:
            if not isinstance(column, (models.CharField, models.TextField, models.JSONField)):
                continue
            n = sum(_says(value, name) for _pk, value in _mentioning(model, column.name, {name}))
            if n:
                found[f"{label}.{column.name}"] = n
    return found | traces_in_files(name)


def _says(value: Any, name: str) -> bool:
    if isinstance(value, str):
        return value == name or name in [word.strip(".,:;()“”") for word in value.split()]
    if isinstance(value, list):
        return any(_says(part, name) for part in value)
    if isinstance(value, dict):
        return any(_says(part, name) for pair in value.items() for part in pair)
    return False
