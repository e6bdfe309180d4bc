"""The front process: the gateway's data path and, behind it, the door to the web process."""

from __future__ import annotations

import os

import django
from django.conf import settings

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "clavier.config.settings")
django.setup()

from clavier.core.front import Front  # noqa: E402  (models can be imported only after setup)
from inference_app.gateway import gateway  # noqa: E402

application = Front(web_socket=settings.CLAVIER_RUN_DIR / "web.sock", gateway=gateway)
