"""Who belongs to a project: members, invitations and the accounts made by them."""

from django import forms
from django.contrib.auth import get_user_model
from django.contrib.auth.forms import BaseUserCreationForm
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy

from labeling.models import Membership


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
