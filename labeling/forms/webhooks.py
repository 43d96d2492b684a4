"""A webhook: its address, and what it is told."""

from django import forms
from django.utils.translation import gettext_lazy as _lazy

from labeling.models import Webhook
from labeling.webhooks import check_address


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
