"""What a person may send us."""

from itertools import count
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib.auth import get_user_model
from django.utils.text import slugify
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy

from labeling.imports.forms import FORM_NAMES, Labels
from labeling.models import Choice, Comparison, Flag, Membership, Project, Rater
from labeling.storage import names_a_path


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


class FilterForm(forms.Form):
    """Which comparisons a lead looks at; lives in the address. Every field may be empty."""

    text = forms.CharField(
        required=False,
        max_length=200,
        label=_lazy("Words"),
        widget=forms.TextInput(attrs={"placeholder": _lazy("of prompt, responses or id")}),
    )
    state = forms.ChoiceField(
        required=False,
        label=_lazy("State"),
        choices=[
            ("", _lazy("Any")),
            ("open", _lazy("Open")),
            ("held", _lazy("Held now")),
            ("done", _lazy("Done")),
            ("skipped", _lazy("Skipped by somebody")),
        ],
    )
    disagreement = forms.ChoiceField(
        required=False,
        label=_lazy("Disagreement"),
        choices=[
            ("", _lazy("Any")),
            ("people", _lazy("People differ")),
            ("all", _lazy("Raters differ")),
        ],
    )
    decision = forms.ChoiceField(
        required=False,
        label=_lazy("Decision"),
        choices=[("", _lazy("Any")), ("no", _lazy("None yet")), ("yes", _lazy("Decided"))],
    )
    flag = forms.ChoiceField(
        required=False,
        label=_lazy("Flag"),
        choices=[
            ("", _lazy("Any or none")),
            ("unresolved", _lazy("Unresolved")),
            *((kind, _lazy("Unresolved: %s") % label) for kind, label in Flag.Kind.choices),
            ("resolved", _lazy("Resolved")),
            ("any", _lazy("Flagged at all")),
        ],
    )
    judge = forms.ChoiceField(
        required=False,
        label=_lazy("Judge and people"),
        choices=[
            ("", _lazy("Any")),
            ("differs", _lazy("A judge differs")),
            ("agrees", _lazy("Judges agree")),
        ],
    )
    purpose = forms.ChoiceField(
        required=False,
        label=_lazy("Purpose"),
        choices=[
            ("", _lazy("Any")),
            ("work", _lazy("Work")),
            ("training", _lazy("Training")),
            ("qualification", _lazy("Qualification")),
            ("check", _lazy("Check")),
            ("gold", _lazy("With a known answer")),
        ],
    )
    leak = forms.ChoiceField(
        required=False,
        label=_lazy("Model named in text"),
        choices=[("", _lazy("Any")), ("yes", _lazy("Yes")), ("no", _lazy("No"))],
    )
    rater = forms.ModelChoiceField(
        Rater.objects.none(), required=False, label=_lazy("Judged by"), empty_label=_lazy("Anybody")
    )
    tag = forms.CharField(
        required=False,
        max_length=100,
        label=_lazy("Tag"),
        widget=forms.TextInput(attrs={"list": "tags"}),
    )
    length_min = forms.FloatField(
        required=False, min_value=0, max_value=100, label=_lazy("Lengths differ by at least, %")
    )
    length_max = forms.FloatField(
        required=False, min_value=0, max_value=100, label=_lazy("Lengths differ by at most, %")
    )

    def __init__(self, *args, project: Project, **kwargs):
        super().__init__(*args, label_suffix="", **kwargs)
        self.fields["rater"].queryset = project.raters.order_by("kind", "name")

    @property
    def query(self) -> str:
        """The filters that are set, for a link."""
        return urlencode(
            {
                name: value.pk if isinstance(value, Rater) else value
                for name, value in self.cleaned_data.items()
                if value not in ("", None)
            }
        )


class BulkForm(forms.Form):
    """A change to the comparisons that are ticked, or to all that the filter lets through."""

    ACTIONS = ("priority", "labels_wanted", "purpose", "gold", "take_out", "put_back")
    NO_GOLD = "none"

    action = forms.ChoiceField(choices=[(name, name) for name in ACTIONS])
    scope = forms.ChoiceField(
        label=_lazy("Change"),
        choices=[("ticked", _lazy("the ticked")), ("filter", _lazy("all in this filter"))],
        initial="ticked",
    )
    priority = forms.IntegerField(
        required=False, min_value=-1000, max_value=1000, label=_lazy("Priority")
    )
    labels_wanted = forms.IntegerField(
        required=False, min_value=1, max_value=100, label=_lazy("Labels wanted")
    )
    purpose = forms.ChoiceField(
        required=False, choices=[("", "–"), *Comparison.Purpose.choices], label=_lazy("Purpose")
    )
    gold = forms.ChoiceField(required=False, label=_lazy("Known answer"))
    note = forms.CharField(required=False, max_length=500, label=_lazy("Note"))
    comparisons = forms.TypedMultipleChoiceField(coerce=int, required=False)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.fields["gold"].choices = [
            ("", "–"),
            *(choice for choice in Choice.choices if choice[0] != Choice.UNPARSED),
            (self.NO_GOLD, _("Not known")),
        ]
        ticked = self.data.getlist("comparisons") if self.is_bound else []
        self.fields["comparisons"].choices = [
            (pk, pk) for pk in ticked if pk.isdecimal() and len(pk) < 19
        ]

    def clean(self):
        cleaned = super().clean()
        action = cleaned.get("action")
        if action in ("priority", "labels_wanted", "purpose", "gold") and action not in self.errors:
            value = cleaned.get(action)
            if value in ("", None):
                self.add_error(action, _("Say which value to set."))
        if cleaned.get("scope") == "ticked" and not cleaned.get("comparisons"):
            self.add_error("comparisons", _("Tick comparisons first."))
        return cleaned


class DecisionForm(forms.Form):
    """A lead's decision: the same answers that raters have."""

    answer = forms.ChoiceField(choices=[(value, value) for value in ANSWERS])
    note = forms.CharField(required=False, max_length=2_000)

    def clean(self):
        cleaned = super().clean()
        if "answer" in cleaned:
            cleaned["choice"], cleaned["strength"] = ANSWERS[cleaned["answer"]]
        return cleaned


class HistoryForm(forms.Form):
    """Whose changes, and those before which one."""

    by = forms.ModelChoiceField(
        get_user_model().objects.none(),
        required=False,
        label=_lazy("Person"),
        empty_label=_lazy("Anybody"),
        to_field_name="username",
    )
    before = forms.IntegerField(required=False, min_value=1, widget=forms.HiddenInput)

    def __init__(self, *args, people: Any, **kwargs):
        super().__init__(*args, label_suffix="", **kwargs)
        self.fields["by"].queryset = people
