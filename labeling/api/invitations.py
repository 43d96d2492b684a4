"""Links that make whoever opens them a member."""

from typing import Any

from django.shortcuts import get_object_or_404
from django.urls import reverse
from drf_spectacular.utils import extend_schema
from rest_framework import status
from rest_framework.generics import GenericAPIView, ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.api.idempotency import idempotent
from labeling.invitations import invite, revoke
from labeling.serializers.invitations import InvitationSerializer, NewInvitationSerializer


@extend_schema(tags=["People"])
class Invitations(ListAPIView):
    """Invitations by link, newest first; the links themselves are not stored."""

    allowed = {"GET": "lead", "POST": "lead"}
    serializer_class = InvitationSerializer
    shown_once = ("link",)

    def get_queryset(self) -> Any:
        return self.request.project.invitations.select_related("created_by")

    @extend_schema(request=InvitationSerializer, responses={201: NewInvitationSerializer})
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Make a link. The answer holds it, this once: sent again with the same Idempotency-Key,
        it comes without. Only an owner invites owners.
        """
        given = InvitationSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        asked = given.validated_data
        invitation, token = invite(
            request.project, asked["role"], request.user, days=asked["days"], uses=asked["uses"]
        )
        invitation.link = request.build_absolute_uri(reverse("labeling:join", args=[token]))
        return Response(NewInvitationSerializer(invitation).data, status=status.HTTP_201_CREATED)


@extend_schema(tags=["People"])
class RevokeInvitation(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = InvitationSerializer

    @extend_schema(request=None, responses={200: InvitationSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Let a link open nothing from now on; members that it made stay."""
        invitation = get_object_or_404(request.project.invitations, pk=pk)
        revoke(invitation, request.user)
        invitation.refresh_from_db()
        return Response(InvitationSerializer(invitation).data)
