"""Anything may happen to a gallery, in any order: the catalogue agrees with a model in plain Python."""

import contextlib
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from tests.shelf import ACT, DAY, NOW, new_definition, new_gallery, new_vm, publish

from calotype.catalog.versions import Change
from calotype.engine.gallery import lifecycle
from calotype.engine.gallery.versions import update_version
from calotype.errors import Conflict, NotAllowed, NotFound
from calotype.model import Lifecycle, Stage, Version

_numbers = st.builds(Version, st.integers(0, 2), st.integers(0, 2), st.integers(0, 1))
_states = st.sampled_from(Lifecycle)
_seldom = st.sampled_from([False, False, False, True])


@dataclass
class Entry:
    """A version in the model; it stays in the model's lineage when it is purged."""

    number: Version
    id: str
    parent: "Entry | None"
    promoted: bool
    excluded: bool
    over: bool
    barred: bool
    blocked: bool
    state: Lifecycle = Lifecycle.ACTIVE
    revoked: bool = False  # for good, once it is purged
    deleted: bool = False
    purged: bool = False
    vms: list[str] = field(default_factory=list)

    def line(self):
        return [self, *(self.parent.line() if self.parent else ())]

    @property
    def tainted(self):
        return any(one.revoked for one in self.line())

    @property
    def eligible(self):
        active = self.state is Lifecycle.ACTIVE and not self.deleted
        return self.promoted and not self.excluded and active and not self.tainted

    @property
    def usable(self):
        obsolete = self.state is Lifecycle.OBSOLETE
        return not (self.deleted or self.tainted or obsolete or self.barred)


class GalleryModel(RuleBasedStateMachine):
    """One definition; ``context`` is set by the test."""

    context: Any = None
    numbers = Bundle("numbers")

    def __init__(self):
        super().__init__()
        self.gallery = new_gallery(self.context, f"g{GalleryModel.serial()}")
        self.definition = new_definition(self.context, self.gallery)
        self.entries: dict[Version, Entry] = {}
        self.gone: list[Entry] = []

    _serial = 0

    @classmethod
    def serial(cls):
        GalleryModel._serial += 1
        return GalleryModel._serial

    # -- what the model says

    def good(self, region=None):
        """Eligible, not over, not barred in the region; the highest first."""
        return sorted(
            (
                e
                for e in self.entries.values()
                if e.eligible and not e.over and not (region and e.barred)
            ),
            key=lambda e: e.number,
            reverse=True,
        )

    def last_good(self):
        heads = [good[0] for good in (self.good(), self.good("here")) if good]
        eligible = [e for e in self.entries.values() if e.eligible]
        return heads or [max(eligible, key=lambda e: e.number)] if heads or eligible else []

    def ref(self, number):
        return f"{self.gallery.name}/web/{number}"

    @contextlib.contextmanager
    def expect(self, error):
        """The command is refused with that error; ``None``: it is not."""
        if error is None:
            yield
            return
        with pytest.raises(error) as caught:
            yield
        assert caught.value.hint

    # -- what happens

    @rule(
        target=numbers,
        number=_numbers,
        promoted=_seldom.map(lambda seldom: not seldom),
        excluded=_seldom,
        over=_seldom,
        barred=_seldom,
        blocked=_seldom,
        data=st.data(),
    )
    def publish(self, number, promoted, excluded, over, barred, blocked, data):
        there = [*self.entries.values(), *self.gone]
        parent = data.draw(st.sampled_from([*[None] * len(there), None, *there]))
        with self.expect(Conflict if number in self.entries else None):
            made = publish(
                self.context,
                self.definition,
                number,
                stage=Stage.PROMOTED if promoted else Stage.STAGED,
                parent=parent.id if parent else None,
                exclude_from_latest=excluded,
                end_of_life=NOW - DAY if over else NOW + DAY,
                block_deletion_before_end_of_life=blocked,
                excluded_regions=(self.context.region,) if barred else (),
            )
            self.entries[number] = Entry(
                number, made.id, parent, promoted, excluded, over, barred, blocked and not over
            )
        return multiple(number)

    def alive(self, number, *, deleted=False):
        """The entry of a number, and the error that its absence means."""
        entry = self.entries.get(number)
        missing = entry is None or (entry.deleted and not deleted)
        return entry, NotFound if missing else None

    @rule(number=numbers)
    def promote(self, number):
        entry, error = self.alive(number)
        if error is None and (entry.state is not Lifecycle.ACTIVE or entry.tainted):
            error = NotAllowed
        with self.expect(error):
            lifecycle.promote(self.context, self.ref(number), untested=True)
            entry.promoted, entry.excluded = True, False

    @rule(number=numbers, excluded=st.booleans())
    def exclude(self, number, excluded):
        entry, error = self.alive(number)
        with self.expect(error):
            update_version(self.context, self.ref(number), exclude_from_latest=excluded)
            entry.excluded = excluded

    @rule(number=numbers | st.none())
    def roll_back(self, number):
        good = self.good("here")
        to: Any
        if number is None:
            to, error = (good[1], None) if len(good) > 1 else (None, NotAllowed)
        else:
            to, error = self.alive(number)
            error = error or (None if to in good else NotAllowed)
        with self.expect(error):
            owner = f"{self.gallery.name}/web"
            done = lifecycle.roll_back(self.context, owner, str(number) if number else None)
            assert done.latest.id == to.id
            for entry in self.entries.values():
                entry.excluded = entry.excluded or entry.number > to.number

    @rule(number=numbers, state=_states)
    def turn(self, number, state):
        entry, error = self.alive(number, deleted=state is Lifecycle.REVOKED)
        with self.expect(error):
            lifecycle.turn(self.context, self.ref(number), state)
            entry.state, entry.revoked = state, state is Lifecycle.REVOKED

    @rule(number=numbers)
    def make_vm(self, number):
        entry, error = self.alive(number)
        error = error or (None if entry.usable else NotAllowed)
        with self.expect(error):
            image = lifecycle.named(self.context, self.ref(number)).image
            warnings = lifecycle.warnings_of(self.context, image)
            assert len(warnings) == (entry.state is Lifecycle.DEPRECATED) + entry.over
            entry.vms.append(new_vm(self.context, f"vm{self.serial()}", image.id).id)

    @rule(number=numbers, force=st.booleans(), purge=st.booleans())
    def delete(self, number, force, purge):
        entry, error = self.alive(number, deleted=purge)
        if error is None and not entry.deleted:
            if entry.blocked or (entry in self.last_good() and not force):
                error = NotAllowed
            elif entry.vms and not force:
                error = Conflict
        with self.expect(error):
            done = lifecycle.delete(self.context, self.ref(number), force=force, purge=purge)
            assert done.gone == purge
            entry.deleted = True
            if purge:
                self.forget(entry)

    @rule(number=numbers)
    def undelete(self, number):
        entry, error = self.alive(number, deleted=True)
        with self.expect(error):
            lifecycle.undelete(self.context, self.ref(number))
            entry.deleted = False

    @rule(number=numbers)
    def expire(self, number):
        """The time in which a deleted version can come back is over, and housekeeping runs."""
        entry = self.entries.get(number)
        overdue = datetime.now(UTC) - DAY
        if entry is not None and entry.deleted:
            self.context.catalog.versions.change(
                entry.id, lambda s: Change(replace(s.version, purge_at=overdue), ACT)
            )
        purged = lifecycle.purge_expired(self.context, self.definition.id)
        assert purged == ((self.ref(number),) if entry is not None and entry.deleted else ())
        if purged:
            self.forget(entry)

    def forget(self, entry):
        entry.purged = True
        del self.entries[entry.number]
        self.gone.append(entry)

    # -- what holds always

    @invariant()
    def lists_agree(self):
        versions = self.context.catalog.versions
        for deleted in (False, True):
            expected = [e.number for e in self.entries.values() if e.deleted is deleted]
            found = versions.list(self.definition.id, deleted=deleted)
            assert [v.version for v in found] == sorted(expected, reverse=True)
            for version in found:
                assert version.eligible == self.entries[version.version].eligible, version

    @invariant()
    def the_latest_agrees(self):
        for region in (None, self.context.region):
            good = self.good(region)
            try:
                found = self.context.catalog.versions.latest(self.definition.id, region=region)
            except NotFound:
                assert not good
            else:
                assert found.id == good[0].id

    @invariant()
    def lineage_agrees(self):
        everything = [*self.entries.values(), *self.gone]
        for entry in everything:
            revoked = self.context.catalog.lineage.revocation(entry.id)
            nearest = next((one.id for one in entry.line() if one.revoked), None)
            assert (revoked.id if revoked else None) == nearest
            below = [other for other in everything if entry in other.line()]
            expected = {o.id for o in below if not o.purged and o is not entry}
            expected |= {vm for o in below for vm in o.vms}
            found = self.context.catalog.lineage.descendants(entry.id).found
            assert {one.id for one in found} == expected

    def teardown(self):
        assert self.context.catalog.audit.verify() is None


def test_whatever_happens_the_catalogue_agrees_with_the_model(context):
    GalleryModel.context = context
    try:
        run_state_machine_as_test(
            GalleryModel,
            settings=settings(
                max_examples=30,
                stateful_step_count=25,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        GalleryModel.context = None
