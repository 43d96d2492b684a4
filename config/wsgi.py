"""WSGI entry point of the web process. It never imports torch, numpy or what needs them."""

import logging
import os

from django.core.wsgi import get_wsgi_application

from config.tracing import WithoutTokens

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
# Where gunicorn is told to write its own log of requests. It has set its loggers up by now, and
# Django's settings would take their handlers away.
logging.getLogger("gunicorn.access").addFilter(WithoutTokens())
application = get_wsgi_application()
