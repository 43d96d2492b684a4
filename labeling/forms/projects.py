"""A project's settings: what raters are asked, who is given what, how much."""

from itertools import count

from django import forms
from django.contrib.humanize.templatetags.humanize import intcomma
from django.utils.text import slugify
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy
from django.utils.translation import ngettext

from labeling.forms.lines import LinesField
from labeling.models import Project
from labeling.projects import SETTINGS, wanting


class PercentField(forms.FloatField):
    """A share, entered and shown as per cent: 0.05 is “5”."""

    def __init__(self, *, most: float = 1, **kwargs):
        super().__init__(min_value=0, max_value=100 * most, **kwargs)

    def prepare_value(self, value):
        return f"{100 * value:.6g}" if isinstance(value, float) else value

    def clean(self, value):
        percent = super().clean(value)
        return None if percent is None else round(percent / 100, 6)


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
