"""Django's own door: every page and API that is no stream."""

import gc
import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "clavier.config.settings")

application = get_wsgi_application()

# What the first request would import, it finds; and what lives as long as the server is not looked through again and
# again: that took 0.1 s each time.
from django.urls import get_resolver  # noqa: E402

get_resolver().url_patterns  # noqa: B018  (the URLs are read when they are asked for)
gc.collect()
gc.freeze()
