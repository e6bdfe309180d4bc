"""Django's own door: every page and API that is no stream."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "clavier.config.settings")

application = get_wsgi_application()
