"""Does a site keep its own rules of a sum, whatever a coordinator asks and whenever its process is started again?"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client import work
from client.membership import PUBLIC_KEY, make_keys
from shared.errors import MessageError, SiteError
from shared.keys import fingerprint, parse_public_key
from shared.messages import SurveyReply, Task, decode_step_reply
from shared.secure_aggregation import keys
from shared.secure_aggregation.steps import Advert, Mask, Sealed, Share
from tests.sums import Coordinator, named_sites, session_file, summed_study, survey_of


@pytest.fixture
def sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    return named_sites(tmp_path, 4, monkeypatch)


@pytest.fixture
def coordinator(sites: list[Path]) -> Coordinator:
    return Coordinator(sites)


def test_secrets_are_for_the_owners_eyes_and_gone_after_the_sum(coordinator: Coordinator, sites: list[Path]) -> None:
    coordinator.up_to_masked()
    file = session_file(sites[0])
    assert file.stat().st_mode & 0o777 == 0o600
    before = json.loads(file.read_text())
    kept = [before[name] for name in ("mask_seed", "self_seed", "sealing_seed")]
    assert all(len(secret) == 32 for secret in kept)
    coordinator.unmask(sites[0], [site.name for site in sites])
    after = file.read_text()
    assert not any(secret in after for secret in kept)
    assert json.loads(after)["held"] == {}
    with pytest.raises(MessageError, match="must come after the sharing of secrets, and before the unmasking"):
        coordinator.mask(sites[0], {})


def test_plain_task_is_refused(coordinator: Coordinator, sites: list[Path]) -> None:
    with pytest.raises(MessageError, match="task must be a step of a sum"):
        coordinator.ask(sites[0], None)  # type: ignore[arg-type]


# Steps that come again


def test_steps_are_answered_alike_when_they_come_again(coordinator: Coordinator, sites: list[Path]) -> None:
    """As after a reply that was lost, or a worker that was killed: nothing but the disk is remembered."""
    roster = coordinator.adverts()
    sealed = coordinator.shares(roster)
    assert coordinator.shares(roster) == sealed
    first, again = (coordinator.mask(sites[0], sealed).vector.sums.tobytes() for _ in range(2))
    assert first == again
    names = [site.name for site in sites]
    assert coordinator.unmask(sites[0], names[:3]) == coordinator.unmask(sites[0], names[:3])


def test_second_set_of_survivors_is_refused(coordinator: Coordinator, sites: list[Path]) -> None:
    """With shares of both secrets of a peer, the coordinator could unmask that peer alone."""
    coordinator.up_to_masked()
    names = [site.name for site in sites]
    opened = coordinator.unmask(sites[0], names[:3])
    assert sorted(opened.self_shares) == names[:3]
    assert sorted(opened.mask_shares) == names[3:]
    for other in (names, [names[0], names[2], names[3]]):
        with pytest.raises(MessageError, match="survivors must be those that this sum was unmasked for"):
            coordinator.unmask(sites[0], other)


def test_second_vector_under_the_same_masks_is_refused(
    coordinator: Coordinator, sites: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their difference would be the difference of what they hide."""
    sealed = coordinator.shares(coordinator.adverts())
    coordinator.mask(sites[0], sealed)
    with pytest.raises(MessageError, match="masked vector must be the one that was sent before"):
        coordinator.mask(sites[0], {name: one for name, one in sealed.items() if name != sites[3].name})
    changed = replace(survey_of("site-00"), patients=1)
    monkeypatch.setattr(work, "survey", lambda folder, task: SurveyReply(folder.name, changed))
    with pytest.raises(MessageError, match="masked vector must be the one that was sent before"):
        coordinator.mask(sites[0], sealed)


def test_second_roster_is_refused(coordinator: Coordinator, sites: list[Path]) -> None:
    roster = coordinator.adverts()
    coordinator.share(sites[0], roster)
    with pytest.raises(MessageError, match="roster must be the one with which this sum began"):
        coordinator.share(sites[0], roster[:3])


def test_new_sum_has_new_keys_and_ends_the_one_before(coordinator: Coordinator, sites: list[Path]) -> None:
    first = coordinator.adverts()
    sealed = coordinator.shares(first)
    second = replace(coordinator, session="two")
    assert not {advert.mask_key for advert in first} & {advert.mask_key for advert in second.adverts()}
    with pytest.raises(MessageError, match="session must be the one that is on at this site"):
        coordinator.mask(sites[0], sealed)
    study = summed_study({"seed": 9})
    with pytest.raises(MessageError, match="session must have begun at this site"):
        replace(coordinator, study=study).mask(sites[0], sealed)


def test_session_is_of_one_phase(coordinator: Coordinator, sites: list[Path]) -> None:
    from client.secure_aggregation import take_part

    sealed = coordinator.shares(coordinator.adverts())
    shares = {name: one.shares[sites[0].name] for name, one in sealed.items() if name != sites[0].name}
    task = Task(coordinator.study, "evaluate", 0, 0, "tuning", None, {}, step=Mask("one", shares))
    with pytest.raises(MessageError, match="session must be the one that is on at this site"):
        take_part(sites[0], task)


# What others may have changed


@pytest.mark.parametrize("changes", [{"start": "ab"}, {"examples": 10**6}])
def test_sites_that_were_told_of_other_work_cannot_open_each_others_shares(
    coordinator: Coordinator, sites: list[Path], changes: dict[str, Any]
) -> None:
    """Else the others' parts could be made known, or nothing, and the sum be one site's."""
    roster = coordinator.adverts()
    sealed = {sites[0].name: coordinator.share(sites[0], roster)}
    for site in sites[1:]:
        told = replace(Share("one", roster, coordinator.start), **changes)
        sealed[site.name] = decode_step_reply(Sealed, coordinator.ask(site, told))
    with pytest.raises(MessageError, match="sealed share"):
        coordinator.mask(sites[0], sealed)


def test_site_works_with_what_all_were_told_of(coordinator: Coordinator, sites: list[Path]) -> None:
    other = replace(coordinator, start="ab")
    sealed = other.shares(other.adverts())
    with pytest.raises(MessageError, match="weights and statistics must be those that all sites of this sum were told"):
        other.mask(sites[0], sealed)


def test_changed_or_misdirected_share_is_refused(coordinator: Coordinator, sites: list[Path]) -> None:
    sealed = coordinator.shares(coordinator.adverts())
    own, peer, third = (site.name for site in sites[:3])

    def with_share(text: str) -> dict[str, Sealed]:
        return {**sealed, peer: Sealed(peer, {own: text})}

    right = sealed[peer].shares[own]
    other = "0" if right[-1] != "0" else "1"
    for wrong in (right[:-1] + other, sealed[peer].shares[third], sealed[third].shares[own], "", right[:-2]):
        with pytest.raises(MessageError, match="sealed share must be of this sum, by the site that it names"):
            coordinator.mask(sites[0], with_share(wrong))
    with pytest.raises(MessageError, match="must be hexadecimal digits"):
        coordinator.mask(sites[0], with_share("no digits"))
    with pytest.raises(MessageError, match="sealed shares must be of sites of the sum, got 'stranger'"):
        coordinator.mask(sites[0], {**sealed, "stranger": Sealed("stranger", {own: right})})


def test_sites_that_were_told_of_different_keys_do_not_sum(coordinator: Coordinator, sites: list[Path]) -> None:
    """Whoever puts a key of its own in a peer's place towards one site is found by the others' shares."""
    roster = coordinator.adverts()
    forged = (*roster[:3], replace(roster[3], mask_key=keys.public_key(keys.new_seed()).hex()))
    sealed = {site.name: coordinator.share(site, forged if site == sites[0] else roster) for site in sites}
    with pytest.raises(MessageError, match="sealed share must be of this sum"):
        coordinator.mask(sites[0], sealed)
    with pytest.raises(MessageError, match="sealed share must be of this sum"):
        coordinator.mask(sites[1], sealed)


def test_roster_must_be_right(coordinator: Coordinator, sites: list[Path]) -> None:
    roster = coordinator.adverts()
    own, *others = roster
    stranger = replace(own, mask_key=others[0].sealing_key)
    for wrong, reason in (
        (tuple(others), "this one with the keys that it made"),
        ((stranger, *others), "this one with the keys that it made"),
        (roster[::-1], "in order"),
        ((own, own, *others), "each site once"),
        (roster[:2], r"sites of the sum must be >= 3 \(secure_aggregation.fewest\), got 2"),
        ((*roster[:3], replace(roster[3], mask_key=own.mask_key)), "roster must have different keys"),
        ((*roster[:3], replace(roster[3], sealing_key="ab")), "must be 64 hexadecimal digits"),
    ):
        with pytest.raises(MessageError, match=reason):
            coordinator.share(sites[0], wrong)
    coordinator.share(sites[0], roster)


def test_too_few_sharers_or_survivors_are_refused(coordinator: Coordinator, sites: list[Path]) -> None:
    sealed = coordinator.shares(coordinator.adverts())
    names = [site.name for site in sites]
    with pytest.raises(MessageError, match="sites that shared must be >= 3, got 2"):
        coordinator.mask(sites[0], {name: sealed[name] for name in names[:2]})
    with pytest.raises(MessageError, match="must come after the masked vector"):
        coordinator.unmask(sites[0], names)
    coordinator.mask(sites[0], sealed)
    for wrong, reason in (
        (names[:2], "survivors must be >= 3, got 2"),
        (names[1:], "this one among them"),
        ([*names, "stranger"], "must name sites that shared"),
        ([*names[:3], names[2]], "each once"),
    ):
        with pytest.raises(MessageError, match=reason):
            coordinator.unmask(sites[0], wrong)


# Long-term keys


def test_sites_with_keys_want_signed_keys_of_their_peers(coordinator: Coordinator, sites: list[Path]) -> None:
    for site in sites:
        make_keys(site)
    roster = coordinator.adverts()
    coordinator.share(sites[1], roster)
    own_seed = keys.new_seed()

    def forged(advert: Advert) -> tuple[Advert, ...]:
        return (*roster[:3], advert)

    for wrong in (
        replace(roster[3], mask_key=keys.public_key(own_seed).hex()),
        replace(roster[3], commitment="00" * 32),
        replace(roster[3], identity=""),
        replace(roster[3], signature="zz"),
        replace(roster[3], identity=roster[2].identity),
    ):
        with pytest.raises(MessageError, match="keys of site-03 must be signed by the site's key"):
            coordinator.share(sites[0], forged(wrong))
    later = replace(coordinator, session="two")
    later.adverts()
    with pytest.raises(MessageError, match="this one with the keys that it made"):
        later.share(sites[0], roster)


def test_signed_keys_of_another_sum_are_refused(coordinator: Coordinator, sites: list[Path]) -> None:
    for site in sites:
        make_keys(site)
    old = coordinator.adverts()
    later = replace(coordinator, session="two")
    new = later.adverts()
    with pytest.raises(MessageError, match="keys of site-03 must be signed by the site's key"):
        later.share(sites[0], (*new[:3], old[3]))


def test_pinned_peers_are_the_only_ones(coordinator: Coordinator, sites: list[Path]) -> None:
    marks = {}
    for site in sites:
        make_keys(site)
        marks[site.name] = fingerprint(parse_public_key((site / PUBLIC_KEY).read_bytes(), site.name))
    lines = [f"  {name}: {mark}" for name, mark in marks.items() if name != "site-00"]
    (sites[0] / "site.yaml").write_text("\n".join(["peers:", *lines]))
    coordinator.share(sites[0], coordinator.adverts())
    make_keys(sites[3], anew=True)  # as if by somebody else who is enrolled as site-03
    with pytest.raises(MessageError, match=r"site site-03 must be among the peers of this site's site\.yaml"):
        coordinator.share(sites[0], coordinator.adverts())
    (sites[0] / "site.yaml").write_text("\n".join(["peers:", *lines[:2]]))
    with pytest.raises(MessageError, match="site site-03 must be among the peers"):
        coordinator.share(sites[0], coordinator.adverts())


def test_failure_of_the_work_sends_nothing(
    coordinator: Coordinator, sites: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path, task: Task) -> SurveyReply:
        raise SiteError("folder", "must be whole")

    sealed = coordinator.shares(coordinator.adverts())
    monkeypatch.setattr(work, "survey", fail)
    with pytest.raises(SiteError):
        coordinator.mask(sites[0], sealed)
    with pytest.raises(MessageError, match="must come after the masked vector"):
        coordinator.unmask(sites[0], [site.name for site in sites])
