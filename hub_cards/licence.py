"""The licence a card may claim: read from the base model's card or given, never guessed.

An adapter is made from its base model, so it cannot be freer than that. Where the base model's card and the adapter's
config disagree, or neither says anything, somebody who knows must say it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nft_pipeline.adapters.config import UNKNOWN
from nft_pipeline.errors import AdapterError
from nft_pipeline.models import shipped_model

# The Hub's ids (hf.co/docs/hub/repositories-licenses) that models usually have. Any other name goes up as "other".
HUB_LICENCES = (
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "mpl-2.0", "isc", "unlicense", "cc0-1.0", "ofl-1.1"),
    *("openrail", "openrail++", "creativeml-openrail-m", "bigscience-openrail-m", "bigcode-openrail-m", "gemma"),
    *("cc-by-4.0", "cc-by-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0"),
    *("gpl-2.0", "gpl-3.0", "lgpl-2.1", "lgpl-3.0", "agpl-3.0", "llama2", "llama3", "llama3.1", "llama3.2"),
)


@dataclass(frozen=True)
class Licence:
    """A licence as a card's metadata names it: one of the Hub's ids, or "other" with a name and perhaps a link."""

    id: str
    name: str | None = None
    link: str | None = None

    @property
    def shown(self) -> str:
        """The name people know it by."""
        return self.name or self.id


def as_licence(text: str) -> Licence:
    """A licence's id or name as the Hub wants it.

    Raises:
        AdapterError: "unknown", or not a short plain name.
    """
    plain = text.strip().lower()
    if plain == UNKNOWN or not re.fullmatch(r"[a-z0-9][a-z0-9.+_-]{0,60}", plain):
        raise AdapterError(
            f"the licence is {text!r}, expected an id such as apache-2.0",
            advice="Give --licence; the ids are on hf.co/docs/hub/repositories-licenses. For another licence give a "
            "short plain name for it.",
        )
    return Licence(plain) if plain in HUB_LICENCES else Licence("other", plain)


def card_licence(base_id: str, config_licence: str, given: str | None, base: Licence | None) -> Licence:
    """The licence for the card.

    Args:
        base_id: the base model, for the errors.
        config_licence: the licence in nft_config.json.
        given: the licence that the person gives now; it wins.
        base: the licence on the base model's card, see `base_licence`; None if it could not be read or names none.

    Raises:
        AdapterError: no source names a licence, or the base model's card and the config disagree.
    """
    if given is not None:
        return as_licence(given)
    unknown = config_licence.strip().lower() == UNKNOWN
    if base is not None and (unknown or config_licence.strip().lower() in (base.id, base.name)):
        return base
    if base is not None:
        raise AdapterError(
            f"the adapter says its licence is {config_licence}, but the card of its base model {base_id} says "
            f"{base.shown}",
            advice="An adapter is bound by its base model's licence. "
            f"Give --licence {base.shown}, or the one that holds.",
        )
    if unknown:
        raise AdapterError(
            f"the licence is not known: neither the adapter says it nor a card of its base model {base_id}",
            advice="Look it up on the base model's page and give --licence, such as --licence apache-2.0.",
        )
    return as_licence(config_licence)


def base_licence(base_id: str, revision: str | None = None) -> Licence | None:
    """The licence on the card of the base model, a shipped one or one on the Hub; None if the card names none.

    If the Hub cannot be reached, that counts as naming none; the adapter's config must then name one.
    """
    from huggingface_hub import ModelCard, hf_hub_download

    shipped = shipped_model(base_id)
    try:
        path = shipped / "README.md" if shipped else hf_hub_download(base_id, "README.md", revision=revision)
        data = ModelCard.load(path).data
    except (OSError, ValueError):  # no such model, no card, no network, no YAML
        return None
    said = data.get("license")
    if not isinstance(said, str) or said.strip().lower() in ("", UNKNOWN):
        return None
    name, link = data.get("license_name"), data.get("license_link")
    if said.strip().lower() != "other":
        return Licence(said.strip().lower())
    return Licence("other", name if isinstance(name, str) else None, link if isinstance(link, str) else None)
