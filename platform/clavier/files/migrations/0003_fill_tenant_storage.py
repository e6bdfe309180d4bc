from __future__ import annotations

from typing import Any

from django.db import migrations
from django.db.models import Sum


def add_up(apps: Any, schema_editor: Any) -> None:
    """What the tenant's users store together; limits stay open."""
    usage, storage = apps.get_model("files", "StorageUsage"), apps.get_model("files", "TenantStorage")
    sums = usage.objects.order_by().values("tenant_id").annotate(size=Sum("bytes_used"), inodes=Sum("inodes_used"))
    storage.objects.bulk_create(
        storage(tenant_id=row["tenant_id"], bytes_used=row["size"], inodes_used=row["inodes"]) for row in sums
    )


class Migration(migrations.Migration):
    dependencies = [("files", "0002_tenant_storage")]

    operations = [migrations.RunPython(add_up, migrations.RunPython.noop)]
