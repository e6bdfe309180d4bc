"""Forms of tasks and evaluations that run the user's own program."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from clavier.portal.forms.resources import ResourceForm

_FOLDER = {"placeholder": "private/", "autocomplete": "off", "spellcheck": "false"}
_CODE = {"rows": 3, "class": "code", "spellcheck": "false"}


def folder_field(label: Any, help_text: Any = "") -> forms.CharField:
    """A folder of the user's files."""
    return forms.CharField(
        label=label, required=False, max_length=5000, help_text=help_text, widget=forms.TextInput(_FOLDER)
    )


def lines_field(label: Any, placeholder: str) -> forms.CharField:
    """``name=value`` lines."""
    return forms.CharField(
        label=label,
        required=False,
        help_text=_("One name=value a line."),
        widget=forms.Textarea({**_CODE, "placeholder": placeholder}),
    )


class OwnCodeForm(ResourceForm):
    """What both have: the program, what it reads, and where its output goes."""

    name = forms.CharField(label=_("Name"), max_length=100)
    description = forms.CharField(label=_("Description"), required=False, widget=forms.Textarea(attrs={"rows": 2}))
    code_folder = folder_field(_("Code folder"), _("Copied when it starts; the command starts in the copy."))
    image = forms.CharField(label=_("Image"), required=False)
    command = forms.CharField(
        label=_("Command"),
        required=False,
        help_text=_("No shell reads it: put pipes and several commands into a script of the code folder."),
        widget=forms.Textarea({**_CODE, "placeholder": "python train.py --data ${input_dir} --out ${output_dir}"}),
    )
    environment = lines_field(_("Environment"), "OMP_NUM_THREADS=4")
    data_folder = folder_field(_("Data folder"), _("Or s3://store/bucket/prefix of an object store."))
    model_folder = folder_field(_("Model folder"), _("Or s3://store/bucket/prefix of an object store."))
    output_folder = folder_field(_("Output folder"), _("The output appears there at the end; a new folder will do."))

    def words(self, *names: str) -> dict[str, Any]:
        """Fields as they were given; empty choices are None."""
        given = self.cleaned_data
        return {name: given[name] or None if name in CHOICES else given[name] for name in names}

    def pairs(self, name: str) -> dict[str, str]:
        """A field of ``name=value`` lines."""
        return pairs_of(self.cleaned_data[name])


class OwnTaskForm(OwnCodeForm):
    """A fine-tune by own code."""

    base_model = forms.CharField(label=_("Base model"), required=False)
    train_dataset = forms.CharField(label=_("Training data"), required=False)
    validation_dataset = forms.CharField(label=_("Validation data"), required=False)
    profile_path = folder_field(
        _("Configuration file"), _("A config.json with commonHyperParameters and fineTuneHyperParameters.")
    )
    hyperparameters = lines_field(_("Hyperparameters"), "learning_rate=1e-4")
    checkpoint_folder = folder_field(_("Checkpoint folder"), _("Needs save_strategy and save_steps."))
    is_pretrain = forms.BooleanField(label=_("It makes a base model (pretraining)"), required=False)


class OwnEvaluationForm(OwnCodeForm):
    """An evaluation by an own program."""

    model_version = forms.CharField(label=_("Model version"), required=False)
    dataset_version = forms.CharField(label=_("Dataset"), required=False)


#: Fields that hold ids.
CHOICES = frozenset({"image", "base_model", "train_dataset", "validation_dataset", "model_version", "dataset_version"})


def pairs_of(text: str) -> dict[str, str]:
    """``name=value`` lines; a line without ``=`` is a name without a value, which the service then refuses by name."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    split = [line.partition("=") for line in lines]
    return {name.strip(): value.strip() for name, _equals, value in split}
