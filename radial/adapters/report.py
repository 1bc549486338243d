"""What an adapter's file is and for which models, told without loading any."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from radial.adapters.account import Account, account_for
from radial.adapters.expert import told_expert
from radial.adapters.file import AdapterFile
from radial.errors import ModelError
from radial.files import BUNDLED
from radial.models.architecture import Architecture, architecture_in, named_architectures
from radial.models.checkpoint import checkpoint_folder
from radial.models.find import find_model
from radial.models.hub.download import cached_folder
from radial.models.lora_settings import read_adapter_settings
from radial.models.table import MODELS

# What trainers say of a run, by the words for it.
_SAID = {
    "trained on": ("modelspec.architecture", "ss_base_model_version", "base_model", "ss_sd_model_name"),
    "title": ("modelspec.title", "ss_output_name", "name"),
    "trigger": ("modelspec.trigger_phrase", "trigger_words", "ss_tag_frequency"),
    "trainer": ("software", "modelspec.implementation", "ss_network_module"),
}


@dataclass(frozen=True)
class AdapterReport:
    """Attributes: what the file says and holds, one line each; and its account in each model that it acts on."""

    facts: dict[str, str]
    accounts: dict[str, Account]

    def rows(self) -> list[tuple[str, str]]:
        """All of it by words, as people read it: what, and what of it."""
        rows = list(self.facts.items())
        if not self.accounts:
            rows.append(("models", "none with a name has its layers; --model NAME says why not"))
        alike: dict[str, list[str]] = {}
        for name, account in self.accounts.items():
            alike.setdefault(account.summary or "all of it acts", []).append(name)
        return [*rows, *(("in", f"{', '.join(names)}:\n{told}") for told, names in alike.items())]


def report_on(file: AdapterFile, model: str | None = None) -> AdapterReport:
    """What a file is, and what becomes of it in a model, or in each named model that it acts on.

    Raises:
        RequestError: there is no such model.
        ModelError: the model's configuration is not here, or nothing of the file fits it.
    """
    facts = {"holds": ", ".join(file.forms), "layers": str(len({entry.layer for entry in file.entries}))}
    if file.ranks:
        facts["rank"] = ", ".join(str(rank) for rank in file.ranks)
    if (settings := read_adapter_settings(file.path)) is not None:
        facts["tuned here"] = ", ".join(f"{k} {v}" for k, v in vars(settings).items() if v not in (None, "", False, ()))
    for what, names in _SAID.items():
        if (said := next((str(file.metadata[name]) for name in names if file.metadata.get(name)), None)) is not None:
            facts[what] = said[:200]
    if (expert := told_expert(file)) is not None:
        facts["noise"] = f"for the {expert}-noise transformer, where there are two"
    architectures = {model: _architecture_of(model)} if model is not None else dict(_likely(file))
    accounts: dict[str, Account] = {}
    by_architecture: dict[Architecture, Account | ModelError] = {}
    for name, one in architectures.items():
        if one not in by_architecture:
            try:
                by_architecture[one] = account_for(file, one.kind, one.shapes)
            except ModelError as error:
                by_architecture[one] = error
        found = by_architecture[one]
        if isinstance(found, Account):
            accounts[name] = found
        elif model is not None:
            raise found
    return AdapterReport(facts, accounts)


def _architecture_of(model: str) -> Architecture:
    if model in named_architectures():
        return named_architectures()[model]
    spec = find_model(model)
    folder = checkpoint_folder(spec) or cached_folder(spec.source)
    if folder is None:
        raise ModelError(f"the configuration of {model} is not here: radial download {model} brings it")
    return architecture_in(folder)


def _likely(file: AdapterFile) -> Iterator[tuple[str, Architecture]]:
    """Named models whose transformers are as wide as a change of the file."""
    sides = {side for entry in file.entries for side in entry.shape}
    for name in (*named_architectures(), *(name for name, spec in MODELS.items() if spec.source.startswith(BUNDLED))):
        one = _architecture_of(name)
        if one.width is None or one.width in sides:
            yield name, one
