"""Invitations, as programs make and see them; the link is told once."""

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from labeling.invitations import state_of
from labeling.models import Invitation, Membership


class InvitationSerializer(serializers.ModelSerializer):
    """A link that makes whoever opens it a member."""

    role = serializers.ChoiceField(choices=Membership.Role.choices, default=Membership.Role.RATER)
    days = serializers.IntegerField(
        min_value=1, max_value=90, default=7, write_only=True, help_text="How long it is valid."
    )
    uses = serializers.IntegerField(
        min_value=1, max_value=1_000, default=1, write_only=True, help_text="For how many people."
    )
    state = serializers.SerializerMethodField()
    created_by = serializers.CharField(
        source="created_by.username", allow_null=True, read_only=True
    )

    class Meta:
        model = Invitation
        fields = [
            "id",
            "role",
            "days",
            "uses",
            "state",
            "uses_left",
            "created_by",
            "created_at",
            "expires_at",
            "revoked_at",
        ]
        read_only_fields = ["id", "uses_left", "created_at", "expires_at", "revoked_at"]

    @extend_schema_field(serializers.ChoiceField(choices=["open", "used", "expired", "revoked"]))
    def get_state(self, invitation: Invitation) -> str:
        return state_of(invitation)


class NewInvitationSerializer(InvitationSerializer):
    """An invitation that was just made, with the link that is shown this once."""

    link = serializers.CharField(read_only=True)

    class Meta(InvitationSerializer.Meta):
        fields = [*InvitationSerializer.Meta.fields, "link"]
