"""Galleries and image definitions: made, changed, shared, deleted. Names and limits are Azure's."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from calotype.catalog import Act
from calotype.engine import names, references
from calotype.engine.context import Context
from calotype.errors import InvalidInput, NotAllowed
from calotype.model import (
    Gallery,
    ImageDefinition,
    PurchasePlan,
    Range,
    Retention,
    Role,
    Sharing,
)
from calotype.units import human_size

#: Properties of a definition that never change -> why.
IMMUTABLE: Mapping[str, str] = {
    "publisher": "whoever uses the image knows it by its publisher, offer and SKU",
    "offer": "whoever uses the image knows it by its publisher, offer and SKU",
    "sku": "whoever uses the image knows it by its publisher, offer and SKU",
    "os_type": "every version of it was made for that system",
    "os_state": "every version of it was proved to be in that state",
    "generation": "every version of it starts by that firmware",
    "architecture": "every version of it runs on that processor",
    "plan": "every version of it was published under that plan",
}
_GALLERY = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._]{0,78}[A-Za-z0-9])?")
_DEFINITION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,78}[A-Za-z0-9])?")
_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?")
#: Part of the triple, and of a plan -> as many characters as it has at most.
_PARTS = {"publisher": 128, "offer": 64, "sku": 64, "product": 64, "name": 64}
_TEXT = 4096
_MAX_TAGS, _TAG_KEY, _TAG_VALUE = 50, 512, 256
_NOT_IN_TAGS = frozenset("<>%&\\?/")
_MAX_SOFT_DELETE = 365


# -- galleries


def create_gallery(
    context: Context,
    name: str,
    *,
    description: str | None = None,
    soft_delete_days: int = 7,
    tags: Mapping[str, str] | None = None,
) -> Gallery:
    """Make a gallery in the caller's group.

    Raises:
        InvalidInput: a property cannot be used.
        Conflict: the subscription has a gallery of that name.
    """
    if not _GALLERY.fullmatch(name) or name.lower() == references.COMMUNITY:
        raise InvalidInput(
            f"'{name}' cannot name a gallery",
            hint="1 to 80 letters, digits, '.' and '_', with a letter or digit at both ends, "
            f"and not '{references.COMMUNITY}'",
        )
    gallery = Gallery(
        id=names.new_id(),
        name=name,
        description=_text("description", description),
        soft_delete_days=_days(soft_delete_days),
        tags=require_tags(tags or {}),
        created_at=datetime.now(UTC),
        scope=context.scope,
    )
    context.catalog.galleries.add(gallery, _act("gallery.create", gallery))
    return gallery


def update_gallery(context: Context, name: str, **changes: Any) -> Gallery:
    """Change the description, the tags or the days of soft deletion; what is not named stays.

    Raises:
        InvalidInput: a property cannot be used.
        NotFound, Forbidden: there is none, or the caller may not change it.
    """
    if "description" in changes:
        changes["description"] = _text("description", changes["description"])
    if "soft_delete_days" in changes:
        changes["soft_delete_days"] = _days(changes["soft_delete_days"])
    if "tags" in changes:
        require_tags(changes["tags"])
    with _held(context, name) as gallery:
        changed = replace(gallery, **changes)
        context.catalog.galleries.update(changed, _act("gallery.update", changed, *changes))
    return changed


def delete_gallery(context: Context, name: str) -> Gallery:
    """Delete an empty gallery.

    Raises:
        NotFound, Forbidden: there is none, or the caller may not delete it.
        Conflict: there are image definitions in it.
    """
    gallery = context.catalog.galleries.get(name)
    context.catalog.galleries.delete(gallery.id, _act("gallery.delete", gallery))
    return gallery


def share(
    context: Context,
    name: str,
    *,
    add: Collection[str] = (),
    remove: Collection[str] = (),
    everyone: bool | None = None,
) -> Gallery:
    """Let other subscriptions (by name or id) use a gallery, or no longer; ``everyone``: all of them.

    Raises:
        NotAllowed: the gallery is public already.
        InvalidInput: it is not shared with what is to be removed, or a subscription is its own.
        NotFound: there is no such subscription.
        Forbidden: the caller is no owner of it.
    """
    more = {_subscription(context, text) for text in add}
    less = {_subscription(context, text) for text in remove}
    with _held(context, name) as gallery:
        _require_not_public(gallery)
        if strange := less - set(gallery.subscriptions):
            raise InvalidInput(
                f"gallery '{gallery.name}' is not shared with {', '.join(sorted(strange))}",
                hint=f"calotype gallery show {gallery.name} says with whom it is",
            )
        if gallery.scope.subscription in more:
            raise InvalidInput(
                f"gallery '{gallery.name}' is that subscription's own",
                hint="its members need roles: calotype role assign",
            )
        shared_with = (set(gallery.subscriptions) | more) - less
        wide = gallery.everyone if everyone is None else everyone
        changed = replace(
            gallery,
            sharing=Sharing.GROUPS if shared_with or wide else Sharing.PRIVATE,
            subscriptions=tuple(sorted(shared_with)),
            everyone=wide,
        )
        return _reshared(context, changed)


def unshare(context: Context, name: str) -> Gallery:
    """Share a gallery with nobody: Azure's ``reset``.

    Raises:
        NotAllowed: the gallery is public.
        Forbidden: the caller is no owner of it.
    """
    with _held(context, name) as gallery:
        _require_not_public(gallery)
        private = replace(gallery, sharing=Sharing.PRIVATE, subscriptions=(), everyone=False)
        return _reshared(context, private)


def _subscription(context: Context, text: str) -> str:
    """The id of a subscription, which another one may know without a role in it."""
    if _ID.fullmatch(text.lower()):
        return text.lower()
    return context.catalog.subscriptions.get(text).id


def _reshared(context: Context, changed: Gallery) -> Gallery:
    act = Act(
        "gallery.share",
        f"gallery {changed.name}",
        {
            "gallery": changed.id,
            "sharing": changed.sharing.value,
            "subscriptions": list(changed.subscriptions),
            "everyone": changed.everyone,
        },
    )
    context.catalog.galleries.update(changed, act, Role.OWNER)
    return changed


def _require_not_public(gallery: Gallery) -> None:
    if gallery.sharing is Sharing.COMMUNITY:
        raise NotAllowed(
            f"gallery '{gallery.name}' is published to the community: everybody may use it",
            hint=f"calotype community withdraw {gallery.name}, then share it",
        )


@contextmanager
def _held(context: Context, name: str) -> Iterator[Gallery]:
    """A gallery, and no other command changes it meanwhile."""
    found = context.catalog.galleries.get(name)
    with context.lock(f"gallery-{found.id}"):
        yield context.catalog.galleries.get(found.id)


# -- definitions


def create_definition(
    context: Context, gallery: str, name: str, **properties: Any
) -> ImageDefinition:
    """Make an image definition; ``properties`` are fields of :class:`~calotype.model.ImageDefinition`.

    Raises:
        InvalidInput: a property cannot be used.
        Conflict: the name, or publisher, offer and SKU, are taken in the gallery.
        NotFound, Forbidden: there is no such gallery, or the caller may not change it.
    """
    if not _DEFINITION.fullmatch(name):
        raise InvalidInput(
            f"'{name}' cannot name an image definition",
            hint="1 to 80 letters, digits, '.', '_' and '-', with a letter or digit at both ends",
        )
    owner = context.catalog.galleries.get(gallery)
    definition = ImageDefinition(
        id=names.new_id(),
        gallery_id=owner.id,
        gallery=owner.name,
        name=name,
        created_at=datetime.now(UTC),
        scope=owner.scope,
        **properties,
    )
    _check(definition, frozenset(properties))
    act = _act_on("definition.create", definition, "publisher", "offer", "sku")
    context.catalog.galleries.add_definition(definition, act)
    return definition


def update_definition(context: Context, reference: str, **changes: Any) -> ImageDefinition:
    """Change properties of a definition; what is not named stays.

    Raises:
        NotAllowed: one of them never changes; the message says why.
        InvalidInput: a property cannot be used.
        NotFound, Forbidden: there is no such definition, or the caller may not change it.
    """
    found = references.find_definition(context, reference)
    with context.lock(f"gallery-{found.gallery_id}"):
        definition = context.catalog.galleries.definition_of(found.id)
        _refuse_immutable(definition, changes)
        changed = replace(definition, **changes)
        _check(changed, changes.keys())
        act = _act_on("definition.update", changed, *changes)
        context.catalog.galleries.update_definition(changed, act)
    return changed


def delete_definition(context: Context, reference: str) -> ImageDefinition:
    """Delete a definition of which there is no version.

    Raises:
        NotFound, Forbidden: there is none, or the caller may not delete it.
        Conflict: there are versions of it, or deleted ones that can come back.
    """
    found = references.find_definition(context, reference)
    context.catalog.galleries.delete_definition(found.id, _act_on("definition.delete", found))
    return found


def _refuse_immutable(definition: ImageDefinition, changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        now = getattr(definition, name)
        if name in IMMUTABLE and value != now:
            owner = definition.reference
            raise NotAllowed(
                f"the {_words(name)} of image definition '{owner}' is {_shown(now)} and never changes: "
                f"{IMMUTABLE[name]}",
                hint="make another definition: calotype gallery image-definition create "
                f"{definition.gallery}/NAME --{name.replace('_', '-')} {_shown(value)} …, and versions of "
                f"it of the same images: calotype gallery image-version create … --image {owner}/VERSION",
            )


def _check(definition: ImageDefinition, given: Collection[str]) -> None:
    """Refuse properties that cannot be used, of those that were given."""
    for part in {"publisher", "offer", "sku"} & set(given):
        _require_part(part, getattr(definition, part))
    if "plan" in given and definition.plan is not None:
        _require_plan(definition.plan)
    for text in {"description", "eula"} & set(given):
        _text(text, getattr(definition, text))
    for uri in {"privacy_uri", "release_notes_uri"} & set(given):
        _require_uri(uri, getattr(definition, uri))
    _require_range("vCPUs", definition.vcpus, str)
    _require_range("memory", definition.memory, human_size)
    names.vm_size(definition.vcpus.min, definition.memory.min)
    names.vm_size(definition.vcpus.max, definition.memory.max)
    require_tags(definition.features, "features")
    require_tags(definition.tags)
    if definition.retention is not None:
        _require_retention(definition.retention)
    if "recipe" in given and definition.recipe is not None:
        _require_recipe(definition.recipe)


def _require_part(part: str, text: str) -> None:
    if not 0 < len(text) <= _PARTS[part] or not _PART.fullmatch(text):
        raise InvalidInput(
            f"'{text}' cannot be {'an' if part == 'offer' else 'a'} {_words(part)}",
            hint=f"1 to {_PARTS[part]} letters, digits, '.', '_' and '-', starting with a letter or digit, "
            "and not ending with '.'",
        )


def _require_plan(plan: PurchasePlan) -> None:
    for part in ("publisher", "product", "name"):
        _require_part(part, getattr(plan, part))


def _require_uri(name: str, text: str | None) -> None:
    if text is None:
        return
    _text(name, text)
    try:
        parts = urlsplit(text)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.netloc or not text.isprintable():
        raise InvalidInput(f"{_words(name)}: '{text}' is no URL", hint="https://…")


def _require_range(what: str, wanted: Range, shown: Callable[[int], str]) -> None:
    if wanted.min is not None and wanted.max is not None and wanted.min > wanted.max:
        raise InvalidInput(
            f"recommended {what}: the least is {shown(wanted.min)}, and the most {shown(wanted.max)}",
            hint="swap them, or name only one",
        )


def _require_retention(retention: Retention) -> None:
    for what, number in (("versions", retention.keep), ("days", retention.days)):
        if number is not None and not 1 <= number <= 1_000_000:
            raise InvalidInput(f"{number} {what} cannot be kept", hint="1 to 1000000")


def _require_recipe(name: str) -> None:
    from calotype.engine.marketplace import recipes  # noqa: PLC0415 (few definitions have one)

    known = [recipe.name for recipe in recipes.available()]
    if name not in known:
        raise InvalidInput(f"there is no recipe '{name}'", hint=f"known are {', '.join(known)}")


def require_tags(tags: Mapping[str, str], what: str = "tags") -> dict[str, str]:
    """``tags`` if they can be a resource's.

    Raises:
        InvalidInput: there are too many, or one is too long or has characters that Azure refuses.
    """
    if len(tags) > _MAX_TAGS:
        raise InvalidInput(f"{len(tags)} {what} are too many", hint=f"{_MAX_TAGS} at most")
    for key, value in tags.items():
        if not 0 < len(key) <= _TAG_KEY or _NOT_IN_TAGS & set(key) or not key.isprintable():
            raise InvalidInput(
                f"'{key}' cannot be a key of {what}",
                hint=f"up to {_TAG_KEY} characters, without < > % & \\ ? /",
            )
        if len(value) > _TAG_VALUE:
            raise InvalidInput(
                f"the value of '{key}' is too long", hint=f"up to {_TAG_VALUE} characters"
            )
    return dict(tags)


def _text(name: str, text: str | None) -> str | None:
    if text is not None and len(text) > _TEXT:
        raise InvalidInput(
            f"the {_words(name)} has {len(text)} characters", hint=f"{_TEXT} at most"
        )
    return text


def _days(number: int) -> int:
    if not 0 <= number <= _MAX_SOFT_DELETE:
        raise InvalidInput(
            f"deleted versions cannot be kept for {number} days",
            hint=f"0 (not at all) to {_MAX_SOFT_DELETE}",
        )
    return number


_WORDS = {
    "sku": "SKU",
    "os_type": "OS type",
    "os_state": "OS state",
    "eula": "EULA",
    "privacy_uri": "privacy URI",
    "release_notes_uri": "release notes URI",
    "name": "name of a plan",
    "product": "product of a plan",
    "plan": "purchase plan",
}


def _words(name: str) -> str:
    return _WORDS.get(name, name.replace("_", " "))


def _shown(value: object) -> str:
    return "none" if value is None else str(value)


def _act(action: str, gallery: Gallery, *changed: str) -> Act:
    detail: dict[str, Any] = {"gallery": gallery.id}
    if changed:
        detail["changed"] = sorted(changed)
    return Act(action, f"gallery {gallery.name}", detail)


def _act_on(action: str, definition: ImageDefinition, *told: str) -> Act:
    detail: dict[str, Any] = {"definition": definition.id}
    if told:
        detail["properties"] = {name: _shown(getattr(definition, name)) for name in sorted(told)}
    return Act(action, f"image definition {definition.reference}", detail)
