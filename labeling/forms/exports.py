"""Which preferences a file takes out, and in what form."""

from django import forms
from django.utils.translation import gettext_lazy as _lazy


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
