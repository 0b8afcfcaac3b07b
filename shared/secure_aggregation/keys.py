"""Which keys does a site make for one sum, and what follows from them? Short seeds, X25519, HKDF, AES-GCM.

Everything is made of seeds of 128 bits, which fit one share of Shamir's scheme, and is thrown away after the sum.
"""

from __future__ import annotations

import hashlib
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shared.errors import MessageError

SEED_BYTES = 16
_KEY_BYTES = 32  # of X25519
_NONCE_BYTES = 12


def new_seed() -> bytes:
    """A secret from the operating system."""
    return secrets.token_bytes(SEED_BYTES)


def private_key(seed: bytes) -> X25519PrivateKey:
    """The key of a seed."""
    return X25519PrivateKey.from_private_bytes(_derive(seed, b"key", _KEY_BYTES))


def public_key(seed: bytes) -> bytes:
    """The public half of a seed's key, 32 bytes."""
    return private_key(seed).public_key().public_bytes_raw()


def commitment(seed: bytes) -> bytes:
    """By which a seed is known again, and from which it cannot be found."""
    return hashlib.sha256(b"fedretina own mask\0" + seed).digest()


def self_mask_key(seed: bytes) -> bytes:
    """The cipher key of a site's own mask."""
    return _derive(seed, b"own mask", SEED_BYTES)


def pair_mask_key(seed: bytes, peer: bytes) -> bytes:
    """The cipher key of the mask between the site of a seed and a peer; the same from both sides.

    Args:
        peer: public key.
    """
    return _agree(seed, peer, b"mask", SEED_BYTES)


def seal(seed: bytes, peer: bytes, text: bytes, bound: bytes) -> bytes:
    """Encrypt for one peer.

    Args:
        bound: what sender and receiver must agree on for the text to be opened; not encrypted.
    """
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(_agree(seed, peer, b"seal", _KEY_BYTES)).encrypt(nonce, text, bound)


def unseal(seed: bytes, peer: bytes, sealed: bytes, bound: bytes) -> bytes:
    """The inverse of ``seal``; raises ``MessageError`` for what the peer did not seal for us, and bound to this."""
    try:
        cipher = AESGCM(_agree(seed, peer, b"seal", _KEY_BYTES))
        return cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], bound)
    except (InvalidTag, ValueError):
        raise MessageError("sealed share", "must be of this sum, by the site that it names") from None


def from_hex(digits: str, length: int, name: str) -> bytes:
    """Bytes of a known length; raises ``MessageError``."""
    try:
        found = bytes.fromhex(digits)
    except ValueError:
        found = b""
    if len(found) != length:
        raise MessageError(name, f"must be {2 * length} hexadecimal digits")
    return found


def key_from_hex(digits: str, name: str) -> bytes:
    """A public key; raises ``MessageError``."""
    return from_hex(digits, _KEY_BYTES, name)


def _agree(seed: bytes, peer: bytes, purpose: bytes, length: int) -> bytes:
    try:
        secret = private_key(seed).exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError:  # a point of low order, with which everybody knows the secret
        raise MessageError("public key of a peer", "must be a key on X25519") from None
    return _derive(secret, purpose, length)


def _derive(secret: bytes, purpose: bytes, length: int) -> bytes:
    return HKDF(hashes.SHA256(), length, salt=None, info=b"fedretina sum: " + purpose).derive(secret)
