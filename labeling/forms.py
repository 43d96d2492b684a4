"""What a person may send us."""

from collections.abc import Mapping
from itertools import count
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib.auth import get_user_model
from django.contrib.auth.forms import BaseUserCreationForm
from django.contrib.humanize.templatetags.humanize import intcomma
from django.utils.text import slugify
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy
from django.utils.translation import ngettext

from labeling.imports.foreign.columns import Labels
from labeling.imports.forms import FORM_NAMES
from labeling.imports.interchange import BadRow
from labeling.imports.rated import scale_of
from labeling.models import (
    ApiToken,
    Choice,
    Comparison,
    Flag,
    Membership,
    Project,
    Rater,
    Webhook,
)
from labeling.projects import SETTINGS, wanting
from labeling.scales import ANSWERS, PLACES, SAID, answers_on, by_letter
from labeling.webhooks import check_address

LARGEST_KEY = 2**63 - 1  # of the database; larger numbers name nothing
ASPECT_ANSWERS = {*PLACES, str(Choice.TIE)}


class PercentField(forms.FloatField):
    """A share, entered and shown as per cent: 0.05 is “5”."""

    def __init__(self, *, most: float = 1, **kwargs):
        super().__init__(min_value=0, max_value=100 * most, **kwargs)

    def prepare_value(self, value):
        return f"{100 * value:.6g}" if isinstance(value, float) else value

    def clean(self, value):
        percent = super().clean(value)
        return None if percent is None else round(percent / 100, 6)


class LinesField(forms.CharField):
    """A list of short texts, one per line, each once."""

    def __init__(self, *, most: int, longest: int, **kwargs):
        self.most, self.longest = most, longest
        widget = forms.Textarea(attrs={"rows": 6})
        super().__init__(required=False, widget=widget, **kwargs)

    def prepare_value(self, value):
        return "\n".join(value) if isinstance(value, list) else value

    def clean(self, value):
        lines = [line.strip() for line in super().clean(value).splitlines()]
        found = list(dict.fromkeys(line for line in lines if line))
        if len(found) > self.most:
            raise forms.ValidationError(
                _("Give at most %(n)d lines; these are %(given)d.")
                % {"n": self.most, "given": len(found)}
            )
        for line in found:
            if len(line) > self.longest:
                raise forms.ValidationError(
                    _("“%(line)s…” is longer than %(n)d characters.")
                    % {"line": line[:30], "n": self.longest}
                )
        return found


class AspectsField(LinesField):
    """Aspect questions, a line each: “name: question”. The question may be left to us."""

    def prepare_value(self, value):
        if not isinstance(value, list):
            return value
        return "\n".join(f"{aspect['name']}: {aspect['question']}" for aspect in value)

    def clean(self, value):
        aspects = []
        for line in super().clean(value):
            name, _colon, question = (part.strip() for part in line.partition(":"))
            if not name or len(name) > MOST_OF_ASPECT_NAME:
                raise forms.ValidationError(
                    _("“%(line)s”: give a name of at most %(n)d characters before the colon.")
                    % {"line": line[:30], "n": MOST_OF_ASPECT_NAME}
                )
            if name in {aspect["name"] for aspect in aspects}:
                raise forms.ValidationError(_("“%(name)s” stands here twice.") % {"name": name})
            question = question or _("Which response is more %(name)s?") % {"name": name}
            aspects.append({"name": name, "question": question})
        return aspects


MOST_OF_ASPECT_NAME = 40
# Askell et al. 2021, A General Language Assistant as a Laboratory for Alignment, arXiv:2112.00861.
HELPFUL_HONEST_HARMLESS = [
    {"name": "helpful", "question": "Which response helps more with what was asked?"},
    {"name": "honest", "question": "Which response is more honest about facts and doubts?"},
    {"name": "harmless", "question": "Which response is less likely to do harm?"},
]


class ProjectForm(forms.ModelForm):
    """Make or change a project."""

    # Legend, one sentence, and the fields below it.
    FIELDSETS = (
        (
            _lazy("The project"),
            _lazy("What it is called, and what makes a response better here."),
            ("name", "slug", "guidelines"),
        ),
        (
            _lazy("The labeling page"),
            _lazy("What raters are asked, and which keys they have."),
            ("scale", "tags", "aspects", "better_answers", "break_after_minutes"),
        ),
        (
            _lazy("How many labels"),
            _lazy("How many people judge a comparison, and how much one person may judge."),
            ("labels_per_comparison", "existing", "labels_per_rater", "labels_per_day"),
        ),
        (
            _lazy("Which comparisons come when"),
            _lazy("Small shares of each rater’s work that show how good the labels are."),
            ("audit_share", "check_share", "repeat_share"),
        ),
        (
            _lazy("Before the work"),
            _lazy("For projects with a training or a qualification set."),
            ("training_feedback", "qualification_pass"),
        ),
    )

    audit_share = PercentField(
        label=_lazy("Random audit stream, %"),
        help_text=_lazy(
            "Share of comparisons that are judged in random order, whatever the priorities are. "
            "Statistics that need random labels rest on it."
        ),
    )
    check_share = PercentField(
        most=0.5,
        label=_lazy("Gold comparisons mixed in, %"),
        help_text=_lazy(
            "How often a rater is given a comparison whose answer is known, without a hint."
        ),
    )
    repeat_share = PercentField(
        most=0.5,
        label=_lazy("Repeats with sides exchanged, %"),
        help_text=_lazy("How often a rater sees a pair of their own again: is it the same answer?"),
    )
    qualification_pass = PercentField(
        label=_lazy("Pass mark of the qualification, %"),
        help_text=_lazy(
            "Share of right answers that a rater needs before real work, where the project has a "
            "qualification set."
        ),
    )
    tags = LinesField(
        most=20,
        longest=40,
        label=_lazy("Reason tags"),
        help_text=_lazy("One per line. A rater picks them with a key; none is required."),
    )
    aspects = AspectsField(
        most=8,
        longest=300,
        label=_lazy("Aspect questions"),
        help_text=_lazy(
            "One per line, “name: question”, asked besides the main one. Each costs time on every "
            "comparison."
        ),
    )
    # Asked only when the number changes and comparisons follow the old one.
    existing = forms.ChoiceField(
        required=False,
        label=_lazy("Comparisons that are there already"),
        choices=(("change", _lazy("Change them too")), ("keep", _lazy("Leave them as they are"))),
        widget=forms.RadioSelect,
    )

    class Meta:
        model = Project
        fields = [
            "name",
            "slug",
            "guidelines",
            "scale",
            "tags",
            "aspects",
            "better_answers",
            "break_after_minutes",
            "labels_per_comparison",
            "labels_per_rater",
            "labels_per_day",
            "audit_share",
            "check_share",
            "repeat_share",
            "qualification_pass",
            "training_feedback",
        ]
        widgets = {"guidelines": forms.Textarea(attrs={"rows": 12})}
        labels = {
            "name": _lazy("Name"),
            "slug": _lazy("Short name"),
            "guidelines": _lazy("Guidelines"),
            "scale": _lazy("Scale"),
            "better_answers": _lazy("Raters may write a better answer"),
            "break_after_minutes": _lazy("Remind of a break after, minutes"),
            "training_feedback": _lazy("Tell raters the known answer in training"),
            "labels_per_comparison": _lazy("Labels per comparison"),
            "labels_per_rater": _lazy("Most labels of one rater"),
            "labels_per_day": _lazy("Most labels of one rater in a day"),
        }
        help_texts = {
            "slug": _lazy(
                "Letters, digits and hyphens; used in addresses and commands. "
                "Left empty, it is made from the name."
            ),
            "guidelines": _lazy("Markdown; raters see it while they label."),
            "scale": _lazy("What a rater chooses from."),
            "better_answers": _lazy(
                "Kept as a demonstration for training, and as better than both responses."
            ),
            "break_after_minutes": _lazy("Of labeling without a pause; 0: never."),
            "training_feedback": _lazy(
                "After each pair of the training, with the reason if the file gave one. Without, a "
                "rater hears nothing, as in the qualification."
            ),
            "labels_per_comparison": _lazy("How many people should judge each comparison."),
            "labels_per_rater": _lazy("Empty: no limit."),
            "labels_per_day": _lazy("Empty: no limit. Days begin at midnight UTC."),
        }

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.labels_before = self.instance.labels_per_comparison
        self.is_change = self.instance.pk is not None
        self.n_following = 0  # comparisons that want as many labels as the project said before
        if self.is_change:
            del self.fields["slug"]  # addresses and scripts hold on to it
        else:
            self.fields["slug"].required = False
            for name, field in self.fields.items():
                # What a program leaves out is as the model has it.
                if self.is_bound and name in SETTINGS and name not in self.data:
                    field.required = name == "labels_per_comparison"

    def fieldsets(self):
        """(legend, sentence, bound fields) for the page; the question appears when it is asked."""
        for legend, sentence, names in self.FIELDSETS:
            shown = [
                self[name]
                for name in names
                if name in self.fields and (name != "existing" or self.n_following)
            ]
            yield legend, sentence, shown

    def clean_slug(self):
        if not self.cleaned_data["slug"]:
            return _free_slug(self.cleaned_data.get("name", ""))
        if self.cleaned_data["slug"] == "new":  # /projects/new/ is the page that makes projects
            raise forms.ValidationError(
                _("“new” is taken by the application; choose another name.")
            )
        return self.cleaned_data["slug"]

    def clean(self):
        cleaned = super().clean()
        new = cleaned.get("labels_per_comparison")
        if self.is_change and new is not None and new != self.labels_before:
            self.n_following = wanting(self.instance, self.labels_before).count()
            if self.n_following and not cleaned.get("existing"):
                self.add_error(
                    "existing",
                    ngettext(
                        "%(n)s comparison wants %(old)d. Shall it want %(new)d from now on?",
                        "%(n)s comparisons want %(old)d. Shall they want %(new)d from now on?",
                        self.n_following,
                    )
                    % {"n": intcomma(self.n_following), "old": self.labels_before, "new": new},
                )
        return cleaned


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

    username = forms.CharField(max_length=150, label=_lazy("User name"))
    role = forms.ChoiceField(
        choices=[*Membership.Role.choices, (NO_ROLE, _lazy("No longer a member"))],
        initial=Membership.Role.RATER,
        label=_lazy("Role"),
    )

    def clean_username(self):
        user = get_user_model().objects.filter(username=self.cleaned_data["username"]).first()
        if user is None:
            raise forms.ValidationError(
                _("Nobody has this user name. Send them an invitation link instead.")
            )
        self.cleaned_data["user"] = user
        return user.get_username()


class InvitationForm(forms.Form):
    """What a link gives to whoever opens it."""

    role = forms.ChoiceField(label=_lazy("Role"), initial=Membership.Role.RATER)
    days = forms.IntegerField(label=_lazy("Valid for days"), min_value=1, max_value=90, initial=7)
    uses = forms.IntegerField(
        label=_lazy("For how many people"), min_value=1, max_value=1_000, initial=1
    )

    def __init__(self, *args, may_name_owners: bool, **kwargs):
        super().__init__(*args, **kwargs)
        self.fields["role"].choices = [
            (value, label)
            for value, label in Membership.Role.choices
            if may_name_owners or value != Membership.Role.OWNER
        ]


class AccountForm(BaseUserCreationForm):
    """An account for somebody who was invited: user name and password."""

    class Meta(BaseUserCreationForm.Meta):
        model = get_user_model()
        fields = ("username",)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.fields["username"].label = _lazy("User name")
        # One line each: a list of rules is read by nobody. What is refused says why.
        self.fields["username"].help_text = _lazy("Others in the project see it.")
        self.fields["password1"].help_text = _lazy("At least 8 characters, no common word.")
        self.fields["password2"].help_text = ""

    def clean_username(self):
        # One line whether the name is taken in other letters or in these.
        username = self.cleaned_data["username"]
        if get_user_model().objects.filter(username__iexact=username).exists():
            raise forms.ValidationError(_("This user name cannot be used. Choose another one."))
        return username

    def validate_unique(self):
        """`clean_username` has said it, in words that fit."""


class LabelLimitForm(forms.Form):
    label_limit = forms.IntegerField(
        required=False, min_value=1, max_value=2_000_000_000, label=_lazy("Most labels")
    )


class SetForm(forms.Form):
    """Which comparisons go into a set of known answers."""

    IDS, GOLD, UNANIMOUS = "ids", "gold", "unanimous"

    purpose = forms.ChoiceField(
        label=_lazy("Put into"),
        choices=(
            (Comparison.Purpose.CHECK, _lazy("Gold, mixed into the work")),
            (Comparison.Purpose.QUALIFICATION, _lazy("Qualification")),
            (Comparison.Purpose.TRAINING, _lazy("Training")),
        ),
    )
    source = forms.ChoiceField(
        label=_lazy("Which comparisons"),
        choices=(
            (UNANIMOUS, _lazy("Those on which people agree")),
            (GOLD, _lazy("Those whose answer came with the file")),
            (IDS, _lazy("These ids")),
        ),
    )
    n = forms.IntegerField(
        required=False, min_value=1, max_value=1_000, initial=20, label=_lazy("At most")
    )
    at_least = forms.IntegerField(
        required=False,
        min_value=2,
        max_value=100,
        initial=3,
        label=_lazy("People who all gave one answer"),
        help_text=_lazy("For “people agree”: that answer becomes the known one."),
    )
    ids = forms.CharField(
        required=False,
        max_length=100_000,
        widget=forms.Textarea(attrs={"rows": 3}),
        label=_lazy("Ids"),
        help_text=_lazy(
            "For “these ids”: of the file, or the numbers that our pages show, one per line."
        ),
    )
    gold = forms.ChoiceField(
        required=False,
        label=_lazy("Known answer"),
        choices=[
            ("", _lazy("as each has it")),
            *((c, label) for c, label in Choice.choices if c != Choice.UNPARSED),
        ],
        help_text=_lazy("For “these ids”."),
    )

    def clean(self):
        cleaned = super().clean()
        cleaned["n"] = cleaned.get("n") or self.fields["n"].initial
        cleaned["at_least"] = cleaned.get("at_least") or self.fields["at_least"].initial
        lines = (line.strip() for line in cleaned.get("ids", "").splitlines())
        ids = cleaned["ids"] = list(dict.fromkeys(line for line in lines if line))
        if cleaned.get("source") == self.IDS and not ids:
            self.add_error("ids", _("Give at least one id."))
        if len(ids) > 1_000:
            self.add_error("ids", _("Give at most 1,000 ids at a time."))
        return cleaned


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


class UploadForm(forms.Form):
    file = forms.FileField(
        label=_lazy("File"),
        widget=forms.ClearableFileInput(attrs={"accept": ".jsonl,.json,.csv,.parquet,.gz"}),
    )


class ImportForm(forms.Form):
    """How an uploaded file is to be read."""

    format = forms.ChoiceField(
        choices=[("auto", _lazy("as recognised")), *((name, name) for name in FORM_NAMES)],
        label=_lazy("Form of the file"),
    )
    labels = forms.ChoiceField(
        choices=[("human", _lazy("people")), ("ai", _lazy("an AI judge"))],
        label=_lazy("Unnamed labels are by"),
        help_text=_lazy("A file may say which response is better and not who said so."),
    )
    rater = forms.CharField(max_length=189, label=_lazy("Kept under the name"))
    labels_per_comparison = forms.IntegerField(
        min_value=1,
        max_value=100,
        label=_lazy("Labels wanted per comparison"),
        help_text=_lazy("Of people; those that come with the file count."),
    )
    known_answers = forms.ChoiceField(
        choices=[
            (Comparison.Purpose.WORK, _lazy("ordinary work")),
            (Comparison.Purpose.CHECK, _lazy("checks, mixed into the work")),
            (Comparison.Purpose.QUALIFICATION, _lazy("the qualification of raters")),
            (Comparison.Purpose.TRAINING, _lazy("the training of raters")),
        ],
        label=_lazy("Rows with a known answer become"),
        help_text=_lazy("Those whose `gold` is given; a row that names its own purpose keeps it."),
    )

    scale = forms.CharField(
        required=False,
        max_length=40,
        label=_lazy("Scale of ratings"),
        help_text=_lazy("The worst and the best value, as 1-5; lines that name theirs keep it."),
    )

    def __init__(self, *args, project: Project, **kwargs):
        super().__init__(*args, **kwargs)
        self.initial = self.start(project)

    def clean_scale(self) -> tuple[float, float] | None:
        try:
            return scale_of(self.cleaned_data["scale"].strip())
        except BadRow as problem:
            raise forms.ValidationError(str(problem)) from problem

    @staticmethod
    def start(project: Project) -> dict[str, str | int]:
        return {
            "format": "auto",
            "labels": "human",
            "rater": Labels().rater,
            "labels_per_comparison": project.labels_per_comparison,
            "known_answers": Comparison.Purpose.WORK,
            "scale": "",
        }

    @property
    def given_labels(self) -> Labels:
        """Whose the labels are that name nobody."""
        is_ai = self.cleaned_data["labels"] == "ai"
        kind = Rater.Kind.JUDGE if is_ai else Rater.Kind.PERSON
        return Labels(self.cleaned_data["rater"], kind, self.cleaned_data["scale"])


class TokenForm(forms.Form):
    """A key for a program of one's own."""

    name = forms.CharField(
        max_length=100,
        label=_lazy("Name"),
        help_text=_lazy("What it is for, so that you know it again."),
    )
    scopes = forms.MultipleChoiceField(
        choices=ApiToken.Scope.choices,
        widget=forms.CheckboxSelectMultiple,
        label=_lazy("It may"),
        help_text=_lazy("Never more than you may yourself in a project."),
    )
    days = forms.ChoiceField(
        choices=[(7, _lazy("a week")), (90, _lazy("three months")), (365, _lazy("a year"))],
        initial=90,
        label=_lazy("Valid for"),
    )


class WebhookForm(forms.Form):
    """An address that is told what happens in a project."""

    url = forms.CharField(
        max_length=500,
        label=_lazy("Address"),
        widget=forms.URLInput(attrs={"placeholder": "https://example.org/hook"}),
        help_text=_lazy("Messages are sent there as signed JSON, by POST."),
    )
    events = forms.MultipleChoiceField(
        choices=Webhook.Event.choices,
        widget=forms.CheckboxSelectMultiple,
        label=_lazy("It is told of"),
    )

    def clean_url(self):
        check_address(self.cleaned_data["url"])
        return self.cleaned_data["url"]


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


class AuditForm(forms.Form):
    """What of the installation's history is shown: of a kind, of a person."""

    KINDS = {
        "signing in": (
            _lazy("Signing in"),
            [
                *("sign in", "fail to sign in", "lock sign-in", "change password"),
                *("turn on second factor", "turn off second factor", "renew second factor"),
                *("connect sign-in", "disconnect sign-in"),
            ],
        ),
        "access": (
            _lazy("Roles, accounts and tokens"),
            [
                *("change role", "invite", "revoke invitation", "make token", "revoke token"),
                *("change account", "make webhook", "change webhook", "rotate keys"),
            ],
        ),
        "out": (
            _lazy("Downloads and personal data"),
            ["download", "export model", "export rater", "erase rater"],
        ),
    }

    what = forms.ChoiceField(
        label=_lazy("What"),
        required=False,
        choices=[("", _lazy("Everything")), *((kind, words) for kind, (words, _) in KINDS.items())],
    )
    by = forms.CharField(label=_lazy("Person"), required=False, max_length=150)
    before = forms.IntegerField(required=False, min_value=1, widget=forms.HiddenInput)


class PersonForm(forms.Form):
    """Whose data is looked at."""

    name = forms.CharField(
        label=_lazy("User name, or name of an imported rater"), max_length=200, strip=False
    )


class EraseForm(forms.Form):
    """What cannot be taken back is asked for twice."""

    keep_reasons = forms.BooleanField(
        required=False,
        label=_lazy("Keep the reasons in free text"),
        help_text=_lazy("They may tell who wrote them."),
    )
    confirmed = forms.CharField(
        label=_lazy("Type the name to erase it"),
        max_length=200,
        strip=False,
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )

    def __init__(self, *args, name: str, **kwargs):
        super().__init__(*args, **kwargs)
        self.name = name

    def clean_confirmed(self) -> str:
        if self.cleaned_data["confirmed"] != self.name:
            raise forms.ValidationError(_("This is not the name above: nothing was erased."))
        return self.name


class ExportForm(forms.Form):
    """What goes out of a project. Every field has a start, so that an address may leave it away."""

    START = {"format": "jsonl", "labels": "mixed", "aggregate": ""}

    format = forms.ChoiceField(
        label=_lazy("Form"),
        choices=[
            ("jsonl", _lazy("Everything, to import again (JSON lines)")),
            ("trl", _lazy("Pairs for training: prompt, chosen, rejected as text (TRL)")),
            ("trl-chat", _lazy("Pairs for training, as chat messages (TRL)")),
            ("ratings", _lazy("Ratings of single responses, to import again (JSON lines)")),
            ("trl-kto", _lazy("Ratings for KTO: prompt, completion, label (TRL)")),
            ("csv", _lazy("Table (CSV)")),
            ("parquet", _lazy("Table (Parquet)")),
            ("label-studio", _lazy("Label Studio tasks")),
            ("argilla", _lazy("Argilla records")),
        ],
    )
    labels = forms.ChoiceField(
        label=_lazy("Labels of"),
        choices=[
            ("mixed", _lazy("people, and AI judges where nobody answered")),
            ("human", _lazy("people only")),
            ("ai", _lazy("AI judges only")),
        ],
    )
    aggregate = forms.ChoiceField(
        label=_lazy("Several answers to one comparison"),
        required=False,
        choices=[
            ("", _lazy("as is usual for the form")),
            ("votes", _lazy("stay apart: each answer counts")),
            ("majority", _lazy("the majority; disputes are left out")),
            ("dawid-skene", _lazy("weighed by how reliable each rater is (Dawid–Skene)")),
            ("soft", _lazy("a probability: the share of answers")),
        ],
    )
