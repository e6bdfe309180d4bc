from __future__ import annotations

from django.contrib import admin
from unfold.admin import TabularInline

from clavier.core.admin import OperatorAdmin, ReadOnly
from evaluation_app.models import EvaluationTask, Score


class ScoreInline(ReadOnly, TabularInline):
    model = Score
    extra = 0


@admin.register(EvaluationTask)
class EvaluationTaskAdmin(ReadOnly, OperatorAdmin):
    list_display = ("name", "state", "model_version", "dataset_version", "tenant", "created_by", "created_at")
    list_filter = ("run__state",)
    search_fields = ("name", "tenant__name", "created_by__username")
    list_select_related = ("run", "model_version__model", "dataset_version__dataset", "tenant", "created_by")
    inlines = (ScoreInline,)

    @admin.display(description="state", ordering="run__state")
    def state(self, task: EvaluationTask) -> str:
        """The newest run's state."""
        return task.run.state if task.run else "saved"


@admin.register(Score)
class ScoreAdmin(ReadOnly, OperatorAdmin):
    list_display = ("evaluation", "label", "metric", "value", "low", "high", "num_samples")
    list_filter = ("metric", "label")
    search_fields = ("evaluation__name",)
    list_select_related = ("evaluation",)
