from django.apps import AppConfig


class ImagesConfig(AppConfig):
    """Container images of tenants, and the store that engines load them from."""

    name = "clavier.images"
    verbose_name = "Images"
