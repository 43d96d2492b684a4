"""Webhooks and their deliveries; a webhook's secret is told once."""

from django.core.exceptions import ValidationError as NotAnAddress
from rest_framework import serializers

from labeling.models import Delivery, Webhook
from labeling.serializers.values import ObjectField
from labeling.webhooks import check_address, secret_of


class WebhookSerializer(serializers.ModelSerializer):
    url = serializers.CharField(max_length=500)
    events = serializers.ListField(
        child=serializers.ChoiceField(choices=Webhook.Event.choices), min_length=1, max_length=3
    )
    disabled = serializers.BooleanField(required=False, write_only=True)

    class Meta:
        model = Webhook
        fields = ["id", "url", "events", "disabled", "created_at", "disabled_at"]
        read_only_fields = ["id", "created_at", "disabled_at"]

    def validate_url(self, url: str) -> str:
        try:
            check_address(url)
        except NotAnAddress as problem:
            raise serializers.ValidationError(problem.messages) from None
        return url

    def validate_events(self, events: list[str]) -> list[str]:
        return sorted(set(events))


class NewWebhookSerializer(WebhookSerializer):
    """A webhook that was just made, with the secret that is shown this once."""

    secret = serializers.SerializerMethodField()

    class Meta(WebhookSerializer.Meta):
        fields = [*WebhookSerializer.Meta.fields, "secret"]

    def get_secret(self, webhook: Webhook) -> str:
        return secret_of(webhook)


class DeliverySerializer(serializers.ModelSerializer):
    event = serializers.CharField(read_only=True)  # "test" is one that no webhook subscribes to
    payload = ObjectField(read_only=True)

    class Meta:
        model = Delivery
        fields = [
            "id",
            "event",
            "payload",
            "created_at",
            "n_tries",
            "next_try_at",
            "status",
            "error",
            "delivered_at",
        ]
        read_only_fields = fields
