from django.apps import AppConfig


class AuditConfig(AppConfig):
    """Who did what: entries of django-auditlog, its admin page, its export. No tables of its own."""

    name = "clavier.audit"
    verbose_name = "Audit"
    label = "audit"

    def ready(self) -> None:
        """Take note of sign-ins; Django tells of them by signal only."""
        from django.contrib.auth.signals import user_logged_in

        from clavier.audit.records import signed_in  # apps must be loaded first

        user_logged_in.connect(signed_in, dispatch_uid="audit_signed_in")
