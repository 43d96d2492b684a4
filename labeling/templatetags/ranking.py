"""`{% rank_card assignment as rank %}`: the responses of a set as its rater sees them."""

from django import template

from labeling.models import Assignment
from labeling.views import rank

register = template.Library()


@register.simple_tag
def rank_card(assignment: Assignment) -> rank.RankCard:
    return rank.rank_card(assignment)
