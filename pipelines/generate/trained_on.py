"""Which sources are trained on, and which ones `sources:` and `providers:` leave out without saying
so."""

from collections.abc import Iterator

from pipelines.generate.providers import enabled
from pipelines.settings.experiments import Experiments


def sources_of(experiments: Experiments) -> list[str]:
    """Names of the providers whose answers are trained on."""
    local = (
        [experiments.local_provider] if experiments.sources.uses_local_generator and experiments.local_provider else []
    )
    return [*local, *experiments.sources.used_providers]


def switched_off(experiments: Experiments) -> Iterator[str]:
    """A sentence for each built-in source that is off although nobody set it to false, with the
    remedy.

    A pasted `sources:` section replaces the whole section before it, so every source that it does
    not name is off.
    """
    sources = experiments.sources
    if sources.own_only:
        own_sources = " and ".join(name for name in ("files", "hub") if getattr(sources, name))
        yield (
            f"sources: {own_sources} alone are trained on; the corpus, the local generator and other providers are left out "
            "(`mix: true` joins those that `sources:` names)"
        )
        return
    if not sources.corpus and "corpus" not in sources.model_fields_set:
        yield (
            "sources: corpus is not named, so nothing is trained on data/corpus.json; write `corpus: true`, or "
            "`corpus: false` if that is intended"
        )
    if why := local_off(experiments):
        yield why


def local_off(experiments: Experiments) -> str | None:
    """Why no model of this machine writes records; None if one does or if the configuration says
    that none should."""
    sources = experiments.sources
    if sources.own_only:
        return None
    if "local_generator" not in sources.model_fields_set:
        return (
            "sources: local_generator is not named, so no model of this machine writes records; write "
            "`local_generator: true`, or `local_generator: false` if that is intended"
        )
    if sources.local_generator and experiments.local_provider is None:
        return (
            "sources: local_generator is true, but providers: has none of kind local, so no model of this machine writes "
            "records; add `local: {kind: local, model: MODEL}`, or write `local_generator: false`"
        )
    return None


def untrained(experiments: Experiments) -> dict[str, str]:
    """Name of each provider whose records are generated but not trained on → a sentence with the
    remedy."""
    used, own_only = sources_of(experiments), experiments.sources.own_only
    reasons = {}
    for name in enabled(experiments):
        own_requests = experiments.provider(name).requests
        requests = experiments.generation.requests if own_requests is None else own_requests
        if requests and name not in used:
            why = (
                "sources.files and sources.hub replace all others" if own_only else "sources.providers does not name it"
            )
            remedy = "set sources.mix: true and name it in sources.providers" if own_only else "add it there"
            reasons[name] = (
                f"its records are asked for, but nothing is trained on them: {why}; {remedy}, or set "
                f"providers.{name}.requests: 0 (a judge or a teacher needs none)"
            )
    return reasons


def left_out(experiments: Experiments) -> list[str]:
    """The sentences of `switched_off` and `untrained` together."""
    return [*switched_off(experiments), *(f"provider {name}: {why}" for name, why in untrained(experiments).items())]
