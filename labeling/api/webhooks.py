"""Webhooks of a project, and the log of what was sent to them."""

from typing import Any

from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import status
from rest_framework.generics import GenericAPIView, ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.api.idempotency import idempotent
from labeling.models import Project, Webhook
from labeling.serializers.webhooks import (
    DeliverySerializer,
    NewWebhookSerializer,
    WebhookSerializer,
)
from labeling.webhooks import change_webhook, make_webhook, send_again, send_test


@extend_schema(tags=["Webhooks"])
class Webhooks(ListAPIView):
    """Addresses that are told what happens."""

    allowed = {"GET": "lead", "POST": "lead"}
    shown_once = ("secret",)
    serializer_class = WebhookSerializer

    def get_queryset(self) -> Any:
        return self.request.project.webhooks.all()

    @extend_schema(request=WebhookSerializer, responses={201: NewWebhookSerializer})
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Make a webhook. The answer holds the secret that signs its messages, this once."""
        given = WebhookSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        asked = given.validated_data
        webhook = make_webhook(request.project, asked["url"], asked["events"], request.user)
        return Response(NewWebhookSerializer(webhook).data, status=status.HTTP_201_CREATED)


@extend_schema(tags=["Webhooks"])
class OneWebhook(GenericAPIView):
    allowed = {"GET": "lead", "PATCH": "lead"}
    serializer_class = WebhookSerializer

    def get(self, request: Request, slug: str, pk: int) -> Response:
        """One webhook."""
        return Response(WebhookSerializer(_webhook(request.project, pk)).data)

    def patch(self, request: Request, slug: str, pk: int) -> Response:
        """Change address or events, or switch it off and on with `disabled`."""
        webhook = _webhook(request.project, pk)
        given = WebhookSerializer(webhook, data=request.data, partial=True)
        given.is_valid(raise_exception=True)
        change_webhook(webhook, request.user, **given.validated_data)
        return Response(WebhookSerializer(webhook).data)


@extend_schema(tags=["Webhooks"])
class SendTest(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = DeliverySerializer

    @extend_schema(request=None, responses={202: DeliverySerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Send a message that says nothing, to see whether it arrives."""
        delivery = send_test(_webhook(request.project, pk))
        return Response(DeliverySerializer(delivery).data, status=status.HTTP_202_ACCEPTED)


@extend_schema(tags=["Webhooks"])
class Deliveries(ListAPIView):
    """What was sent to a webhook, and whether it arrived; newest first."""

    allowed = {"GET": "lead"}
    serializer_class = DeliverySerializer

    def get_queryset(self) -> Any:
        return _webhook(self.request.project, self.kwargs["pk"]).deliveries.all()


@extend_schema(tags=["Webhooks"])
class SendAgain(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = DeliverySerializer

    @extend_schema(request=None, responses={202: DeliverySerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int, delivery: int) -> Response:
        """Try a message anew."""
        found = get_object_or_404(_webhook(request.project, pk).deliveries, pk=delivery)
        send_again(found)
        found.refresh_from_db()
        return Response(DeliverySerializer(found).data, status=status.HTTP_202_ACCEPTED)


def _webhook(project: Project, pk: int) -> Webhook:
    return get_object_or_404(project.webhooks, pk=pk)
