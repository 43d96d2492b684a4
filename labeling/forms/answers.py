"""What a rater answers: a choice, an order, a skip."""

from collections.abc import Mapping
from typing import Any

from django import forms
from django.utils.translation import gettext as _

from labeling.models import Choice, Flag, Project
from labeling.scales import PLACES, SAID, answers_on, by_letter

LARGEST_KEY = 2**63 - 1  # of the database; larger numbers name nothing
ASPECT_ANSWERS = {*PLACES, str(Choice.TIE)}


class AnswerForm(forms.Form):
    """One answer to one comparison that the rater was given.

    It names the assignment: by the comparison's own number a repeat would be known.
    """

    assignment = forms.IntegerField(max_value=LARGEST_KEY)
    answer = forms.CharField()
    rationale = forms.CharField(required=False, max_length=10_000)
    better = forms.CharField(required=False, max_length=100_000)
    seconds = forms.FloatField(required=False, min_value=0, max_value=86_400)
    answer_key = forms.CharField(required=False, max_length=64)

    def __init__(self, *args, project: Project, **kwargs):
        super().__init__(*args, **kwargs)
        self.project = project

    def clean_answer(self):
        if self.cleaned_data["answer"] not in answers_on(self.project.scale):
            raise forms.ValidationError(_("This project does not know this answer."))
        return self.cleaned_data["answer"]

    def clean_better(self):
        return self.cleaned_data["better"] if self.project.better_answers else ""

    def clean(self):
        cleaned = super().clean()
        chosen = set(self.data.getlist("tags"))
        # In the project's order, so that the same choice is always kept as the same list.
        cleaned["tags"] = [tag for tag in self.project.tags if tag in chosen]
        said = {a["name"]: self.data.get(f"aspect-{a['name']}") for a in self.project.aspects}
        cleaned["aspects"] = {name: side for name, side in said.items() if side in ASPECT_ANSWERS}
        return cleaned

    def judgement(self, left: str) -> dict[str, Any]:
        """What was said, of responses instead of places; `left` is the letter shown there."""
        said = self.cleaned_data
        place, strength = SAID[said["answer"]]
        return {
            "choice": by_letter(place, left),
            "strength": strength,
            "rationale": said["rationale"],
            "tags": said["tags"],
            "aspects": {name: by_letter(side, left) for name, side in said["aspects"].items()},
        }


class SkipForm(forms.Form):
    """Pass a comparison on: with a reason of the list or in other words, or with a flag."""

    assignment = forms.IntegerField(max_value=LARGEST_KEY)
    reason = forms.CharField(required=False, max_length=500)
    other_reason = forms.CharField(required=False, max_length=500)
    flag = forms.ChoiceField(required=False, choices=Flag.Kind)
    note = forms.CharField(required=False, max_length=500)
    answer_key = forms.CharField(required=False, max_length=64)


class RankingForm(forms.Form):
    """The places that a rater gives to the responses of a set; equal numbers share one.

    `responses` holds their ids by the names that the rater knows them by.
    """

    rationale = forms.CharField(required=False, max_length=10_000)
    seconds = forms.FloatField(required=False, min_value=0, max_value=86_400)
    answer_key = forms.CharField(required=False, max_length=64)

    def __init__(self, *args, responses: Mapping[str, int], **kwargs):
        super().__init__(*args, **kwargs)
        self.responses = responses
        for name in responses:
            self.fields[f"place-{name}"] = forms.IntegerField(min_value=1, max_value=len(responses))

    def clean(self):
        cleaned = super().clean()
        places = {pk: cleaned.get(f"place-{name}") for name, pk in self.responses.items()}
        if None in places.values():
            raise forms.ValidationError(_("Give each response a place."))
        cleaned["order"] = [
            [pk for pk in places if places[pk] == place] for place in sorted(set(places.values()))
        ]
        return cleaned
