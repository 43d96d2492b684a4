"""Projects, their members and their history, as programs send and see them."""

from django.contrib.auth import get_user_model
from rest_framework import serializers

from labeling.models import Change, Membership, Project
from labeling.projects import SETTINGS
from labeling.serializers.values import ObjectField


class AspectSerializer(serializers.Serializer):
    name = serializers.CharField(max_length=60)
    question = serializers.CharField(max_length=300)

    def validate(self, aspect: dict[str, str]) -> dict[str, str]:
        # A PATCH leaves out fields of the project, not of what it brings.
        missing = {"name", "question"} - aspect.keys()
        if missing:
            raise serializers.ValidationError(dict.fromkeys(missing, "This field is required."))
        return aspect


class ProjectSerializer(serializers.ModelSerializer):
    """A project with all its settings, for those who see or lead it."""

    tags = serializers.ListField(
        child=serializers.CharField(max_length=60), max_length=20, required=False
    )
    aspects = serializers.ListField(child=AspectSerializer(), max_length=10, required=False)
    labels_per_rater = serializers.IntegerField(
        min_value=1, max_value=2**31 - 1, required=False, allow_null=True
    )
    labels_per_day = serializers.IntegerField(
        min_value=1, max_value=2**31 - 1, required=False, allow_null=True
    )
    break_after_minutes = serializers.IntegerField(min_value=0, max_value=1_440, required=False)

    class Meta:
        model = Project
        fields = [
            "slug",
            "name",
            *SETTINGS,
            "completed_at",
            "created_at",
        ]
        read_only_fields = ["completed_at", "created_at"]

    def validate_slug(self, slug: str) -> str:
        if self.instance is not None and slug != self.instance.slug:
            raise serializers.ValidationError("Addresses and scripts hold on to it: it stays.")
        if slug == "new":  # /projects/new/ is the page that makes projects
            raise serializers.ValidationError("“new” is taken by the application.")
        return slug


class RaterProjectSerializer(serializers.ModelSerializer):
    """What a rater is told of a project: not how often known answers are mixed in."""

    class Meta:
        model = Project
        fields = ["slug", "name", "guidelines", "scale", "tags", "aspects", "better_answers"]
        read_only_fields = fields


class ProjectLineSerializer(serializers.ModelSerializer):
    """One line of the list of projects."""

    class Meta:
        model = Project
        fields = ["slug", "name", "completed_at", "created_at"]
        read_only_fields = fields


class MeSerializer(serializers.Serializer):
    username = serializers.CharField()
    scopes = serializers.ListField(child=serializers.CharField(), allow_null=True)
    roles = serializers.DictField(child=serializers.CharField())


class MembershipSerializer(serializers.ModelSerializer):
    username = serializers.CharField(source="user.username", max_length=150)

    class Meta:
        model = Membership
        fields = ["id", "username", "role"]

    def validate_username(self, username: str) -> str:
        user = get_user_model().objects.filter(username=username).first()
        if user is None:
            raise serializers.ValidationError("Nobody has this user name.")
        self.person = user
        return username


class ChangeSerializer(serializers.ModelSerializer):
    actor = serializers.CharField(source="actor.username", allow_null=True, read_only=True)
    before = ObjectField(read_only=True)
    after = ObjectField(read_only=True)

    class Meta:
        model = Change
        fields = ["id", "actor", "action", "subject", "before", "after", "created_at"]
        read_only_fields = fields
