"""What a person may send us."""

from itertools import count
from typing import Any

from django import forms
from django.contrib.auth import get_user_model
from django.utils.text import slugify
from django.utils.translation import gettext_lazy as _

from labeling.imports.forms import FORM_NAMES, Labels
from labeling.models import ApiToken, Choice, Comparison, Membership, Project, Rater, Webhook
from labeling.storage import names_a_path
from labeling.webhooks import check_address


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


STRENGTHS = {1: "slightly", 2: "clearly", 3: "much"}
# What a button may send: the choice, and how much better.
ANSWERS: dict[str, tuple[str, int | None]] = {
    **{f"{letter}-{n}": (letter, n) for letter in "ab" for n in STRENGTHS},
    Choice.TIE: (Choice.TIE, None),
    Choice.BOTH_BAD: (Choice.BOTH_BAD, None),
}


class AnswerForm(forms.Form):
    """One answer to one comparison.

    `answer` names the response, never the side it was shown on: "a-2" is "response A is clearly
    better"; "tie" and "both_bad" stand alone.
    """

    comparison = forms.ModelChoiceField(Comparison.objects.none())
    answer = forms.ChoiceField(choices=[(value, value) for value in ANSWERS])
    rationale = forms.CharField(required=False, max_length=10_000)
    seconds = forms.FloatField(required=False, min_value=0, max_value=86_400)

    def __init__(self, *args, project: Project, **kwargs):
        super().__init__(*args, **kwargs)
        self.fields["comparison"].queryset = Comparison.objects.filter(project=project)

    def clean(self):
        cleaned = super().clean()
        if "answer" in cleaned:
            cleaned["choice"], cleaned["strength"] = ANSWERS[cleaned["answer"]]
        return cleaned


class SkipForm(forms.Form):
    comparison = forms.ModelChoiceField(Comparison.objects.none())
    rationale = forms.CharField(required=False, max_length=500)

    def __init__(self, *args, project: Project, **kwargs):
        super().__init__(*args, **kwargs)
        self.fields["comparison"].queryset = Comparison.objects.filter(project=project)


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
        }

    @property
    def given_labels(self) -> Labels:
        """Whose the labels are that name nobody."""
        is_ai = self.cleaned_data["labels"] == "ai"
        kind = Rater.Kind.JUDGE if is_ai else Rater.Kind.PERSON
        return Labels(rater=self.cleaned_data["rater"], kind=kind)


class TokenForm(forms.Form):
    """A key for a program of one's own."""

    name = forms.CharField(
        max_length=100, label=_("Name"), help_text=_("What it is for, so that you know it again.")
    )
    scopes = forms.MultipleChoiceField(
        choices=ApiToken.Scope.choices,
        widget=forms.CheckboxSelectMultiple,
        label=_("It may"),
        help_text=_("Never more than you may yourself in a project."),
    )
    days = forms.ChoiceField(
        choices=[(7, _("a week")), (90, _("three months")), (365, _("a year"))],
        initial=90,
        label=_("Valid for"),
    )


class WebhookForm(forms.Form):
    """An address that is told what happens in a project."""

    url = forms.CharField(
        max_length=500,
        label=_("Address"),
        widget=forms.URLInput(attrs={"placeholder": "https://example.org/hook"}),
        help_text=_("Messages are sent there as signed JSON, by POST."),
    )
    events = forms.MultipleChoiceField(
        choices=Webhook.Event.choices,
        widget=forms.CheckboxSelectMultiple,
        label=_("It is told of"),
    )

    def clean_url(self):
        check_address(self.cleaned_data["url"])
        return self.cleaned_data["url"]
