from django.apps import AppConfig


class FilesConfig(AppConfig):
    """The files of users and what they take up."""

    name = "clavier.files"
    verbose_name = "Files"
