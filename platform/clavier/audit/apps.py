from django.apps import AppConfig


class AuditConfig(AppConfig):
    """Who did what: entries of django-auditlog, its admin page, its export. No tables of its own."""

    name = "clavier.audit"
    verbose_name = "Audit"
    label = "audit"

    def ready(self) -> None:
        """Take note of sign-ins, of which Django tells by signal only, and of no row as a part of another one.

        Rows that point at one of a kind (a run's folder, its model version) would be asked for at each change of that
        one; they have entries of their own.
        """
        from auditlog.registry import auditlog
        from django.contrib.auth.signals import user_logged_in

        from clavier.audit.records import signed_in  # apps must be loaded first

        for model in auditlog.get_models():
            pointing = [field.name for field in model._meta.get_fields() if field.one_to_one and field.auto_created]
            auditlog._registry[model]["exclude_fields"] += pointing
        user_logged_in.connect(signed_in, dispatch_uid="audit_signed_in")
