"""A list of short texts in one field, a line each."""

from django import forms
from django.utils.translation import gettext as _


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
