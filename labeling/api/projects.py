"""Projects, their members, and who changed what."""

from typing import Any

from django.db import transaction
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework import exceptions, status
from rest_framework.generics import GenericAPIView, ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.access import projects_of
from labeling.api.access import ANYONE, MEMBER
from labeling.api.idempotency import idempotent
from labeling.members import set_role
from labeling.models import Membership, Project
from labeling.projects import keep_settings, make_project, settings_of
from labeling.serializers.projects import (
    ChangeSerializer,
    MembershipSerializer,
    MeSerializer,
    ProjectLineSerializer,
    ProjectSerializer,
    RaterProjectSerializer,
)


class Me(GenericAPIView):
    """Who the caller is, what the token may do, and the roles in projects."""

    allowed = {"GET": ANYONE}
    serializer_class = MeSerializer

    @extend_schema(tags=["Account"])
    def get(self, request: Request) -> Response:
        roles = request.user.memberships.values_list("project__slug", "role")
        me = {
            "username": request.user.get_username(),
            "scopes": request.auth.scopes if request.auth else None,
            "roles": dict(roles),
        }
        return Response(me)


@extend_schema(tags=["Projects"])
class Projects(ListAPIView):
    """The projects that the caller can open."""

    allowed = {"GET": ANYONE, "POST": "lead"}
    serializer_class = ProjectLineSerializer

    def get_queryset(self) -> Any:
        return projects_of(self.request.user)

    @extend_schema(request=ProjectSerializer, responses={201: ProjectSerializer})
    @idempotent
    def post(self, request: Request) -> Response:
        """Make a project and become its owner; open to staff."""
        if not request.user.is_staff:
            raise exceptions.PermissionDenied("Projects are made by staff.")
        given = ProjectSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        project = Project(**given.validated_data)
        make_project(project, request.user)
        return Response(ProjectSerializer(project).data, status=status.HTTP_201_CREATED)


@extend_schema(tags=["Projects"])
class OneProject(GenericAPIView):
    allowed = {"GET": MEMBER, "PATCH": "lead"}
    serializer_class = ProjectSerializer

    def get(self, request: Request, slug: str) -> Response:
        """A project with its settings; raters are told what concerns their work."""
        sees_all = "view" in request.project.may
        shown = ProjectSerializer if sees_all else RaterProjectSerializer
        return Response(shown(request.project).data)

    def patch(self, request: Request, slug: str) -> Response:
        """Change settings. `labels_per_comparison` holds for what is imported from now on."""
        given = ProjectSerializer(request.project, data=request.data, partial=True)
        given.is_valid(raise_exception=True)
        before = settings_of(request.project) | {"name": request.project.name}
        for name, value in given.validated_data.items():
            setattr(request.project, name, value)
        keep_settings(request.project, before, request.user)
        return Response(ProjectSerializer(request.project).data)


@extend_schema(tags=["People"])
class Members(ListAPIView):
    """Who belongs to the project, and in which role."""

    allowed = {"GET": "lead", "POST": "lead"}
    serializer_class = MembershipSerializer

    def get_queryset(self) -> Any:
        return self.request.project.memberships.select_related("user")

    @extend_schema(request=MembershipSerializer, responses={200: MembershipSerializer})
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Give a person a role, or another one. Only an owner makes and changes owners."""
        given = MembershipSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        role = given.validated_data["role"]
        set_role(request.project, given.person, role, request.user)
        membership = request.project.memberships.get(user=given.person)
        return Response(MembershipSerializer(membership).data)


@extend_schema(tags=["People"])
class OneMember(GenericAPIView):
    allowed = {"DELETE": "lead"}
    serializer_class = MembershipSerializer

    @extend_schema(responses={204: OpenApiResponse(description="No longer a member.")})
    @transaction.atomic
    def delete(self, request: Request, slug: str, pk: int) -> Response:
        """Take a person's role; their answers stay."""
        membership: Membership = get_object_or_404(request.project.memberships, pk=pk)
        set_role(request.project, membership.user, None, request.user)
        return Response(status=status.HTTP_204_NO_CONTENT)


@extend_schema(tags=["Projects"])
class Changes(ListAPIView):
    """Who changed what, newest first."""

    allowed = {"GET": "lead"}
    serializer_class = ChangeSerializer

    def get_queryset(self) -> Any:
        return self.request.project.changes.select_related("actor")
