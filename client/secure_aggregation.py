"""How does a site take part in a sum that shows nobody its part? Four steps; its secrets wait on its disk in between.

The site's own rules hold whatever the coordinator asks: one masked vector a key set, shares of one secret a peer, one
set of survivors. A step that is asked again is answered alike or refused.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path

from flwr.app import RecordDict

from client import work
from client.membership import PRIVATE_KEY, own_key
from client.site import read_settings
from shared.config import EVALUATE, SURVEY, SecAgg
from shared.errors import ConfigError, KeyFileError, MessageError, OwnDataError
from shared.files import write_atomic
from shared.keys import fingerprint, is_signed, parse_public_key, public_pem, sign
from shared.knobs import digest, from_json, knob, to_json
from shared.messages import Masked, Task, masked_content, step_reply_content
from shared.secure_aggregation import keys
from shared.secure_aggregation.masking import MaskKey, Vector, Words, add_masks
from shared.secure_aggregation.quantisation import no_words, to_sums, to_words
from shared.secure_aggregation.sharing import split, threshold
from shared.secure_aggregation.steps import (
    Advert,
    Advertise,
    Mask,
    Opened,
    Sealed,
    Share,
    Unmask,
    digest_of,
    start_digest,
)
from shared.secure_aggregation.summands import Numbers, of_scores, of_survey, of_training
from shared.site_folder import SiteFolder

SESSIONS = "state/sums"
_SHARE = 2 * keys.SEED_BYTES  # hexadecimal digits of a share

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session:
    """What a site keeps of one sum. Hexadecimal; the secrets are forgotten when the sum is unmasked.

    A file of mode 0600, one a study: a new sum begins with new keys in its place.
    """

    session: str = knob(help="name of the sum")
    phase: str = knob(help="stage, round and split that it is of")
    advert: Advert = knob(help="what was published")
    mask_seed: str = knob("", "of the key from which pairwise masks follow")
    self_seed: str = knob("", "of the site's own mask")
    sealing_seed: str = knob("", "of the key for shares")
    roster: tuple[Advert, ...] = knob((), "the sites of the sum")
    start: str = knob("", "digest of what the work begins with, at each site of the sum")
    examples: int = knob(0, "training examples of the whole federation at most", ge=0)
    sealed: str = knob("", "the answer to the step that shares")
    held: dict[str, str] = knob({}, "shares of both secrets of each site that shared, the own mask's first")
    vector_sha256: str = knob("", "of the masked vector that may have left")
    survivors: tuple[str, ...] = knob((), "sites whose parts are in the sum")
    opened: str = knob("", "the answer to the step that unmasks")

    @property
    def names(self) -> list[str]:
        """Of the sites of the sum, in order."""
        return [advert.site for advert in self.roster]

    def advert_of(self, site: str) -> Advert:
        """What a site of the sum published."""
        return self.roster[self.names.index(site)]

    def bound(self, sender: str, receiver: str) -> bytes:
        """What a sealed share is bound to: the keys of all, the work of all, who made it, and for whom.

        A coordinator that gave the others other weights, whose outcome it knows, would read this part off the sum.
        """
        return (
            digest_of(self.roster)
            + "\n".join([self.session, self.start, str(self.examples), sender, receiver]).encode()
        )


def take_part(folder: Path, task: Task) -> RecordDict:
    """Answer one step of a sum.

    Raises:
        MessageError: a step that the site's rules refuse, or a message that somebody changed.
        FedretinaError: of the work itself.
    """
    step = task.step
    if isinstance(step, Advertise):
        return step_reply_content(_advertise(folder, task, step))
    if isinstance(step, Share):
        return step_reply_content(_share(folder, task, step))
    if isinstance(step, Mask):
        return masked_content(_mask(folder, task, step))
    if isinstance(step, Unmask):
        return step_reply_content(_unmask(folder, task, step))
    remedy = "The study says that the coordinator receives sums alone."
    raise MessageError("task", "must be a step of a sum", remedy=remedy)


# The steps


def _advertise(folder: Path, task: Task, step: Advertise) -> Advert:
    mask_seed, self_seed, sealing_seed = (keys.new_seed() for _ in range(3))
    advert = Advert(
        site=SiteFolder(folder).name,
        mask_key=keys.public_key(mask_seed).hex(),
        sealing_key=keys.public_key(sealing_seed).hex(),
        commitment=keys.commitment(self_seed).hex(),
    )
    if (folder / PRIVATE_KEY).exists():
        key = own_key(folder)
        advert = replace(advert, identity=public_pem(key.public_key()).decode())
        advert = replace(advert, signature=sign(key, advert.content(_context(task, step.session))).hex())
    session = Session(
        session=step.session,
        phase=_phase(task),
        advert=advert,
        mask_seed=mask_seed.hex(),
        self_seed=self_seed.hex(),
        sealing_seed=sealing_seed.hex(),
    )
    _keep(folder, task, session)
    return advert


def _share(folder: Path, task: Task, step: Share) -> Sealed:
    session = _session(folder, task, step.session)
    if session.roster:
        told = (step.roster, step.start, step.examples)
        if told != (session.roster, session.start, session.examples) or not session.sealed:
            raise MessageError("roster", "must be the one with which this sum began, and not unmasked yet")
        return from_json(Sealed, session.sealed)
    _check_roster(folder, task, step, session.advert)
    session = replace(session, roster=step.roster, start=step.start, examples=step.examples)
    names, own, needed = session.names, session.advert.site, threshold(len(step.roster), _setting(task))
    secrets = (bytes.fromhex(session.self_seed), bytes.fromhex(session.mask_seed))
    pairs = zip(*(split(secret, needed, len(names)) for secret in secrets), strict=True)
    shares = {name: b"".join(pair) for name, pair in zip(names, pairs, strict=True)}
    sealing = bytes.fromhex(session.sealing_seed)
    sealed = {
        peer: keys.seal(sealing, _sealing_key(session, peer), share, session.bound(own, peer)).hex()
        for peer, share in shares.items()
        if peer != own
    }
    answer = Sealed(own, sealed)
    _keep(folder, task, replace(session, sealed=to_json(answer), held={own: shares[own].hex()}))
    return answer


def _mask(folder: Path, task: Task, step: Mask) -> Masked:
    session = _session(folder, task, step.session)
    session = replace(session, held=_received(session, step, _setting(task)))
    own = session.advert.site
    if start_digest(task.weights, task.statistics, task.rounds) != session.start:
        raise MessageError("weights and statistics", "must be those that all sites of this sum were told of")
    words, numbers = _own_part(folder, task, session.examples)
    vector = Vector(words, to_sums(numbers.counts, numbers.reals, len(session.roster)))
    seed = bytes.fromhex(session.mask_seed)
    pairs = [
        MaskKey(keys.pair_mask_key(seed, _mask_key(session, peer)), subtract=peer < own)
        for peer in session.held
        if peer != own
    ]
    add_masks(vector, [MaskKey(keys.self_mask_key(bytes.fromhex(session.self_seed)), subtract=False), *pairs])
    sha256 = hashlib.sha256(vector.words.tobytes() + vector.sums.tobytes()).hexdigest()
    if session.vector_sha256 not in ("", sha256):  # the difference of two would show what the masks hide
        raise MessageError("masked vector", "must be the one that was sent before", remedy="Begin a new sum.")
    _keep(folder, task, replace(session, vector_sha256=sha256))
    return Masked(own, vector)


def _unmask(folder: Path, task: Task, step: Unmask) -> Opened:
    session = _session(folder, task, step.session)
    if session.survivors:
        if session.survivors != step.survivors:  # else it could have both secrets of a peer
            raise MessageError("survivors", "must be those that this sum was unmasked for")
        return from_json(Opened, session.opened)
    _check_survivors(session, step.survivors, threshold(len(session.roster), _setting(task)))
    alive = set(step.survivors)
    answer = Opened(
        session.advert.site,
        {site: share[:_SHARE] for site, share in session.held.items() if site in alive},
        {site: share[_SHARE:] for site, share in session.held.items() if site not in alive},
    )
    log.info("%s: unmasked the sum of %d of %d sites", session.phase, len(alive), len(session.roster))
    closed = Session(session.session, session.phase, session.advert, roster=session.roster)
    _keep(folder, task, replace(closed, survivors=step.survivors, opened=to_json(answer)))
    return answer


# What the site refuses


def _check_roster(folder: Path, task: Task, step: Share, own: Advert) -> None:
    names, pinned = [advert.site for advert in step.roster], read_settings(folder).peers
    if names != sorted(set(names)) or own not in step.roster:
        raise MessageError("roster", "must name each site once, in order, this one with the keys that it made")
    fewest = _setting(task).fewest
    if len(names) < fewest:
        raise MessageError("sites of the sum", f"must be >= {fewest} (secure_aggregation.fewest)", value=len(names))
    published = [key for advert in step.roster for key in (advert.mask_key, advert.sealing_key)]
    if len(set(published)) < len(published):
        raise MessageError("roster", "must have different keys")
    for advert in step.roster:
        if own.identity or pinned:
            _check_identity(advert, advert.content(_context(task, step.session)))
        if pinned and advert.site != own.site:
            _check_pinned(advert, pinned)


def _check_identity(advert: Advert, content: bytes) -> None:
    """The keys must be signed by the key that the advert names, whosever that is."""
    try:
        key = parse_public_key(advert.identity.encode(), f"key of {advert.site}")
        signature = bytes.fromhex(advert.signature)
    except (KeyFileError, ValueError):
        raise MessageError(f"keys of {advert.site}", "must be signed by the site's key") from None
    if not is_signed(key, content, signature):
        raise MessageError(f"keys of {advert.site}", "must be signed by the site's key")


def _check_pinned(advert: Advert, pinned: dict[str, str]) -> None:
    """The key that signed must be the one that this site's people were told of."""
    found = fingerprint(parse_public_key(advert.identity.encode(), f"key of {advert.site}"))
    if pinned.get(advert.site, "").split() != found.split():
        rule = f"must be among the peers of this site's site.yaml, with the fingerprint {found}"
        raise MessageError(f"site {advert.site}", rule, value=pinned.get(advert.site))


def _received(session: Session, step: Mask, setting: SecAgg) -> dict[str, str]:
    """The shares of all sites that shared; this site's own as well."""
    own, needed = session.advert.site, threshold(len(session.roster), setting)
    if not session.sealed or not session.mask_seed:
        raise MessageError("task.step", "must come after the sharing of secrets, and before the unmasking")
    strangers = step.shares.keys() - (set(session.names) - {own})
    if strangers:
        raise MessageError("sealed shares", "must be of sites of the sum", value=sorted(strangers)[0])
    if len(step.shares) + 1 < needed:
        raise MessageError("sites that shared", f"must be >= {needed}", value=len(step.shares) + 1)
    held, seed = {own: session.held[own]}, bytes.fromhex(session.sealing_seed)
    for peer, digits in sorted(step.shares.items()):
        try:
            sealed = bytes.fromhex(digits)
        except ValueError:
            raise MessageError(f"sealed share of {peer}", "must be hexadecimal digits") from None
        share = keys.unseal(seed, _sealing_key(session, peer), sealed, session.bound(peer, own))
        if len(share) != 2 * keys.SEED_BYTES:
            raise MessageError(f"sealed share of {peer}", "must be of two secrets")
        held[peer] = share.hex()
    return held


def _check_survivors(session: Session, survivors: tuple[str, ...], needed: int) -> None:
    if not session.vector_sha256:
        raise MessageError("task.step", "must come after the masked vector")
    if list(survivors) != sorted(set(survivors) & session.held.keys()) or session.advert.site not in survivors:
        raise MessageError("survivors", "must name sites that shared, each once, in order, this one among them")
    if len(survivors) < needed:
        raise MessageError("survivors", f"must be >= {needed}", value=len(survivors))


# Their parts


def _own_part(folder: Path, task: Task, examples: int) -> tuple[Words, Numbers]:
    """What the site adds, in the clear."""
    if task.stage == SURVEY:
        return no_words(), of_survey(work.survey(folder, task).survey)
    if task.stage == EVALUATE:
        return no_words(), of_scores(work.evaluate_split(folder, task).scores)
    update = work.train_round(folder, task)
    if update.examples > examples:
        rule = f"must be <= {examples}, those of the whole federation by its survey"
        raise OwnDataError("training examples", rule, value=update.examples)
    share = update.examples / examples
    words = to_words(update.weights, task.weights, share, _setting(task).largest_change)
    loss = 0.0 if update.loss is None else update.loss  # which the coordinator knows that it is not told
    return words, of_training(update.examples, loss, update.tuning)


def _setting(task: Task) -> SecAgg:
    setting = task.study.secure_aggregation
    assert isinstance(setting, SecAgg)
    return setting


def _mask_key(session: Session, peer: str) -> bytes:
    return keys.key_from_hex(session.advert_of(peer).mask_key, f"mask key of {peer}")


def _sealing_key(session: Session, peer: str) -> bytes:
    return keys.key_from_hex(session.advert_of(peer).sealing_key, f"sealing key of {peer}")


def _phase(task: Task) -> str:
    return f"{task.stage} {task.round} {task.split}"


def _context(task: Task, session: str) -> str:
    """What a signature is for, besides the keys."""
    return f"{digest(task.study)} {session} {_phase(task)}"


def _file(folder: Path, task: Task) -> Path:
    return folder / SESSIONS / f"{digest(task.study)}.json"


def _keep(folder: Path, task: Task, session: Session) -> None:
    write_atomic(_file(folder, task), to_json(session).encode())  # of mode 0600, as all files that are written so


def _session(folder: Path, task: Task, name: str) -> Session:
    """The sum that is on; raises ``MessageError`` when it is another one."""
    try:
        session = from_json(Session, _file(folder, task).read_text(encoding="utf-8"))
    except (FileNotFoundError, ConfigError, UnicodeDecodeError):
        raise MessageError("session", "must have begun at this site", remedy="Begin a new sum.") from None
    if session.session != name or session.phase != _phase(task):
        raise MessageError("session", "must be the one that is on at this site", remedy="Begin a new sum.")
    return session
