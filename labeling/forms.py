"""What a person may send us."""

from collections.abc import Collection
from itertools import count
from typing import Any

from django import forms
from django.contrib.auth import get_user_model
from django.utils.text import slugify
from django.utils.translation import gettext_lazy as _

from labeling.imports.forms import FORM_NAMES, Labels
from labeling.models import Choice, Comparison, Flag, Membership, Project, Rater
from labeling.scales import ANSWERS, answers_on
from labeling.storage import names_a_path

ASPECT_ANSWERS = {str(Choice.A), str(Choice.B), str(Choice.TIE)}


def check_model_name(name: str, user: Any) -> None:
    """Refuse paths of the worker's machine to everybody but administrators: they would lead to
    other projects' models.

    Raises: ValidationError.
    """
    if names_a_path(name) and not user.is_superuser:
        raise forms.ValidationError(
            "Only an administrator names a path. Give a model of this project, a folder under "
            "models/ in the storage folder, or a hub id."
        )


class ProjectForm(forms.ModelForm):
    """Make or change a project."""

    class Meta:
        model = Project
        fields = ["name", "slug", "labels_per_comparison", "guidelines"]
        widgets = {"guidelines": forms.Textarea(attrs={"rows": 12})}
        labels = {"slug": "Short name"}
        help_texts = {
            "slug": "Letters, digits and hyphens; used in addresses and commands. "
            "Left empty, it is made from the name.",
        }

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.fields["slug"].required = False

    def clean_slug(self):
        if not self.cleaned_data["slug"]:
            return _free_slug(self.cleaned_data.get("name", ""))
        if self.cleaned_data["slug"] == "new":  # /projects/new/ is the page that makes projects
            raise forms.ValidationError("“new” is taken by the application; choose another name.")
        return self.cleaned_data["slug"]


def _free_slug(name: str) -> str:
    """A slug like the name that no project has; names without a Latin letter become "project"."""
    start = slugify(name)[:40].strip("-") or "project"
    taken = {"new", *Project.objects.filter(slug__startswith=start).values_list("slug", flat=True)}
    return next(
        slug for n in count(1) if (slug := start if n == 1 else f"{start}-{n}") not in taken
    )


class MemberForm(forms.Form):
    """Give a person a role in a project, another one, or none."""

    NO_ROLE = "none"

    username = forms.CharField(max_length=150)
    role = forms.ChoiceField(
        choices=[*Membership.Role.choices, (NO_ROLE, "No longer a member")],
        initial=Membership.Role.RATER,
    )

    def clean_username(self):
        user = get_user_model().objects.filter(username=self.cleaned_data["username"]).first()
        if user is None:
            raise forms.ValidationError(
                "Nobody has this user name. An administrator adds people under Administration."
            )
        self.cleaned_data["user"] = user
        return user.get_username()


class AnswerForm(forms.Form):
    """One answer to one comparison that the rater was given.

    `assignment` may be left out by programs that know the comparison alone.
    """

    comparison = forms.IntegerField()
    assignment = forms.IntegerField(required=False)
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
        if "answer" in cleaned:
            cleaned["choice"], cleaned["strength"] = ANSWERS[cleaned["answer"]]
        chosen = set(self.data.getlist("tags"))
        # In the project's order, so that the same choice is always kept as the same list.
        cleaned["tags"] = [tag for tag in self.project.tags if tag in chosen]
        said = {a["name"]: self.data.get(f"aspect-{a['name']}") for a in self.project.aspects}
        cleaned["aspects"] = {name: side for name, side in said.items() if side in ASPECT_ANSWERS}
        return cleaned


class SkipForm(forms.Form):
    """Pass a comparison on: with a reason of the list or in other words, or with a flag."""

    comparison = forms.IntegerField()
    assignment = forms.IntegerField(required=False)
    reason = forms.CharField(required=False, max_length=500)
    other_reason = forms.CharField(required=False, max_length=500)
    flag = forms.ChoiceField(required=False, choices=Flag.Kind)
    note = forms.CharField(required=False, max_length=500)
    answer_key = forms.CharField(required=False, max_length=64)


class RankingForm(forms.Form):
    """The places that a rater gives to the responses of a set; equal numbers share one."""

    rationale = forms.CharField(required=False, max_length=10_000)
    seconds = forms.FloatField(required=False, min_value=0, max_value=86_400)
    answer_key = forms.CharField(required=False, max_length=64)

    def __init__(self, *args, responses: Collection[int], **kwargs):
        super().__init__(*args, **kwargs)
        self.responses = responses
        for pk in responses:
            self.fields[f"place-{pk}"] = forms.IntegerField(min_value=1, max_value=len(responses))

    def clean(self):
        cleaned = super().clean()
        places = {pk: cleaned.get(f"place-{pk}") for pk in self.responses}
        if None in places.values():
            raise forms.ValidationError(_("Give each response a place."))
        cleaned["order"] = [
            [pk for pk in self.responses if places[pk] == place]
            for place in sorted(set(places.values()))
        ]
        return cleaned


class UploadForm(forms.Form):
    file = forms.FileField(
        label="File",
        widget=forms.ClearableFileInput(attrs={"accept": ".jsonl,.json,.csv,.parquet,.gz"}),
    )


class ImportForm(forms.Form):
    """How an uploaded file is to be read."""

    format = forms.ChoiceField(
        choices=[("auto", "as recognised"), *((name, name) for name in FORM_NAMES)],
        label="Form of the file",
    )
    labels = forms.ChoiceField(
        choices=[("human", "people"), ("ai", "an AI judge")],
        label="Unnamed labels are by",
        help_text="A file may say which response is better and not who said so.",
    )
    rater = forms.CharField(max_length=189, label="Kept under the name")
    labels_per_comparison = forms.IntegerField(
        min_value=1,
        max_value=100,
        label="Labels wanted per comparison",
        help_text="Of people; those that come with the file count.",
    )
    known_answers = forms.ChoiceField(
        choices=[
            (Comparison.Purpose.WORK, _("ordinary work")),
            (Comparison.Purpose.CHECK, _("checks, mixed into the work")),
            (Comparison.Purpose.QUALIFICATION, _("the qualification of raters")),
            (Comparison.Purpose.TRAINING, _("the training of raters")),
        ],
        label=_("Rows with a known answer become"),
        help_text=_("Those whose `gold` is given; a row that names its own purpose keeps it."),
    )

    def __init__(self, *args, project: Project, **kwargs):
        super().__init__(*args, **kwargs)
        self.initial = self.start(project)

    @staticmethod
    def start(project: Project) -> dict[str, str | int]:
        return {
            "format": "auto",
            "labels": "human",
            "rater": Labels().rater,
            "labels_per_comparison": project.labels_per_comparison,
            "known_answers": Comparison.Purpose.WORK,
        }

    @property
    def given_labels(self) -> Labels:
        """Whose the labels are that name nobody."""
        is_ai = self.cleaned_data["labels"] == "ai"
        kind = Rater.Kind.JUDGE if is_ai else Rater.Kind.PERSON
        return Labels(rater=self.cleaned_data["rater"], kind=kind)
