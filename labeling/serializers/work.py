"""What a rater's program is given, and what it answers: pairs, rankings, skips and flags."""

from typing import Any

from rest_framework import serializers

from labeling.models import Assignment, Choice, Flag, Project
from labeling.scales import PLACES, by_letter
from labeling.serializers.values import SAID, MessageSerializer, identifier


class WantedWorkSerializer(serializers.Serializer):
    n = serializers.IntegerField(
        min_value=1, max_value=3, default=1, help_text="Pieces of work to hold at once."
    )


class ShownSerializer(serializers.Serializer):
    messages = MessageSerializer(many=True)


class RankedSerializer(serializers.Serializer):
    id = serializers.CharField(help_text="What `order` calls it.")
    messages = MessageSerializer(many=True)


class PieceSerializer(serializers.Serializer):
    """One piece of work: a pair to compare, or a set of responses to rank."""

    assignment = serializers.IntegerField(help_text="What its answer names.")
    kind = serializers.ChoiceField(choices=["pair", "ranking"])
    prompt = MessageSerializer(many=True)
    left = ShownSerializer(allow_null=True, help_text="Of a pair: the response to show first.")
    right = ShownSerializer(allow_null=True)
    responses = RankedSerializer(many=True, help_text="Of a ranking: all responses.")
    expires_at = serializers.DateTimeField()


class WhySerializer(serializers.Serializer):
    reason = serializers.ChoiceField(
        choices=[
            "nothing",
            "done",
            "held",
            "seen",
            "limit",
            "day_limit",
            "paused",
            "disqualified",
        ]
    )
    n_open = serializers.IntegerField()
    n_held = serializers.IntegerField()
    held_until = serializers.DateTimeField(allow_null=True)


class WorkSerializer(serializers.Serializer):
    work = PieceSerializer(many=True)
    why = WhySerializer(allow_null=True, help_text="Why there is no work, where there is none.")


class JudgementSerializer(serializers.Serializer):
    """What a rater says of a pair."""

    choice = serializers.ChoiceField(choices=SAID, help_text="Which of the two is better.")
    strength = serializers.IntegerField(
        min_value=1,
        max_value=3,
        required=False,
        allow_null=True,
        default=None,
        help_text="1 slightly, 2 clearly, 3 much better; for left and right.",
    )
    rationale = serializers.CharField(
        max_length=10_000, required=False, allow_blank=True, default=""
    )
    tags = serializers.ListField(
        child=serializers.CharField(max_length=60), max_length=20, required=False, default=list
    )
    aspects = serializers.DictField(
        child=serializers.ChoiceField(choices=[*PLACES, str(Choice.TIE)]),
        required=False,
        default=dict,
    )

    def check_against(self, project: Project) -> None:
        """Raises: ValidationError for what the project does not ask."""
        answer, problems = self.validated_data, {}
        if project.scale == Project.Scale.TWO and answer["choice"] not in PLACES:
            problems["choice"] = ["This project asks for left or right alone."]
        if project.scale != Project.Scale.SEVEN and answer["strength"] is not None:
            problems["strength"] = ["This project does not ask how much better."]
        unknown = [tag for tag in answer["tags"] if tag not in project.tags]
        if unknown:
            problems["tags"] = [f"Not a tag of this project: {unknown[0]}"]
        asked = {aspect["name"] for aspect in project.aspects}
        if not answer["aspects"].keys() <= asked:
            problems["aspects"] = [f"This project asks about: {', '.join(sorted(asked)) or '–'}."]
        if answer.get("better", "").strip() and not project.better_answers:
            problems["better"] = ["This project takes no better answers."]
        if problems:
            raise serializers.ValidationError(problems)

    def judgement(self, left: str) -> dict[str, Any]:
        """What was sent, of responses instead of places; `left` is the letter shown there."""
        said = self.validated_data
        aspects = {name: by_letter(place, left) for name, place in said["aspects"].items()}
        return {**said, "choice": by_letter(said["choice"], left), "aspects": aspects}


class AnswerSerializer(JudgementSerializer):
    assignment = identifier()
    seconds = serializers.FloatField(
        min_value=0, max_value=86_400, required=False, allow_null=True, default=None
    )
    better = serializers.CharField(
        max_length=100_000,
        required=False,
        allow_blank=True,
        default="",
        help_text="A better answer of the rater's own, where the project takes them.",
    )
    next = serializers.IntegerField(
        min_value=0,
        max_value=3,
        default=0,
        help_text="Pieces of work to hold after this answer: `work` then brings them.",
    )


class FeedbackSerializer(serializers.Serializer):
    gold = serializers.ChoiceField(choices=SAID, help_text="The known answer.")
    is_right = serializers.BooleanField()


class KeptSerializer(serializers.Serializer):
    """An answer that is on disk."""

    assignment = serializers.IntegerField()
    choice = serializers.ChoiceField(choices=SAID)
    strength = serializers.IntegerField(allow_null=True)
    kept_at = serializers.DateTimeField()
    feedback = FeedbackSerializer(
        allow_null=True, help_text="In training, where the project gives it."
    )
    work = PieceSerializer(many=True)
    why = WhySerializer(allow_null=True)


class OrderSerializer(serializers.Serializer):
    """An order of the responses of a set."""

    order = serializers.ListField(
        child=serializers.ListField(
            child=serializers.CharField(max_length=20), min_length=1, max_length=20
        ),
        min_length=1,
        max_length=20,
        help_text='Ids of the responses, best first; equals share a place: [["c4"], ["07", "9b"]].',
    )
    rationale = serializers.CharField(
        max_length=10_000, required=False, allow_blank=True, default=""
    )


class RankingSerializer(OrderSerializer):
    assignment = identifier()
    seconds = serializers.FloatField(
        min_value=0, max_value=86_400, required=False, allow_null=True, default=None
    )


class KeptRankingSerializer(serializers.Serializer):
    id = serializers.IntegerField(help_text="What a revision names.")
    order = serializers.ListField(child=serializers.ListField(child=serializers.CharField()))
    kept_at = serializers.DateTimeField()


class SkipSerializer(serializers.Serializer):
    reason = serializers.CharField(max_length=500, required=False, allow_blank=True, default="")
    flag = serializers.ChoiceField(
        choices=["", *Flag.Kind.choices], required=False, default="", allow_blank=True
    )
    note = serializers.CharField(max_length=500, required=False, allow_blank=True, default="")


class NewFlagSerializer(serializers.Serializer):
    kind = serializers.ChoiceField(choices=Flag.Kind.choices)
    note = serializers.CharField(max_length=500, required=False, allow_blank=True, default="")


class ReleaseSerializer(serializers.Serializer):
    assignments = serializers.ListField(
        child=identifier(), max_length=100, required=False, help_text="All that is held, if absent."
    )


class ReleasedSerializer(serializers.Serializer):
    released = serializers.IntegerField()


class AssignmentSerializer(serializers.ModelSerializer):
    """Where a piece of work stands after a skip."""

    class Meta:
        model = Assignment
        fields = ["id", "state"]
        read_only_fields = fields
