"""Settings and the pieces that know every app. Importing it makes `shared_task` find our Celery."""

from config.celery import app as celery_app

__all__ = ["celery_app"]
