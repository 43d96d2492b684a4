"""The words of judges' questions, as numbered versions that never change."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.utils.translation import gettext as _

from judges.ml.config import PROMPT_FIELDS, JudgeRecipe, prompt_words, recipe_from
from judges.models import PromptVersion
from labeling.differences import Part, word_difference
from labeling.models import Project


@transaction.atomic
def prompt_version(
    project: Project, name: str, words: Mapping[str, Any], user: Any = None
) -> tuple[PromptVersion, bool]:
    """The version of the prompt `name` with these words, and whether it was made now."""
    Project.objects.select_for_update().get(pk=project.pk)  # one new version at a time
    versions = PromptVersion.objects.filter(project=project, name=name)
    found = versions.filter(content_hash=words_hash(words)).first()
    if found is not None:
        return found, False
    newest = versions.first()
    made = PromptVersion.objects.create(
        project=project,
        name=name,
        number=newest.number + 1 if newest else 1,
        words=dict(words),
        content_hash=words_hash(words),
        created_by=user if user is not None and user.is_authenticated else None,
    )
    return made, True


def prompt_of(
    project: Project, recipe: JudgeRecipe, name: str, user: Any = None
) -> tuple[PromptVersion, bool]:
    """The project's prompt with the words of this recipe, whatever it is called; where there is
    none, a new version of the prompt `name`."""
    words = prompt_words(recipe)
    same = PromptVersion.objects.filter(project=project, content_hash=words_hash(words))
    found = same.order_by("pk").first()
    return (found, False) if found else prompt_version(project, name, words, user)


def words_hash(words: Mapping[str, Any]) -> str:
    """Equal for equal words. A word that an older version did not name has the default's value."""
    whole = prompt_words(recipe_from({**words, "ties": True}))
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def with_words(recipe_values: Mapping[str, Any], words: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's values with other words, all else being as it was."""
    settings = {key: value for key, value in recipe_values.items() if key not in PROMPT_FIELDS}
    return {**settings, **words}


@dataclass(frozen=True)
class Difference:
    """One field of two prompts, in parts that are marked where the other lacks them."""

    field: str
    left: list[Part]
    right: list[Part]


def prompt_differences(left: PromptVersion, right: PromptVersion) -> list[Difference]:
    """The fields in which two prompts differ, word by word.

    Raises: labeling.differences.TooLong.
    """
    found = []
    for field in PROMPT_FIELDS:
        texts = [as_text(version.words.get(field)) for version in (left, right)]
        if texts[0] != texts[1]:
            found.append(Difference(field, *word_difference(*texts)))
    return found


def as_text(value: Any) -> str:
    """A field of a prompt as a person reads it."""
    if isinstance(value, list):
        return "\n".join(map(as_text, value))
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, indent=1)
    if isinstance(value, bool):
        return _("yes") if value else _("no")
    return "" if value is None else str(value)
