"""How does a site prove who it is and what it approved? One elliptic-curve key, made there, which never leaves it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shared.errors import KeyFileError
from shared.files import naming

PrivateKey = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey
_SHOWN = 16  # hexadecimal digits of a fingerprint that people compare


def new_key() -> PrivateKey:
    """A key on NIST P-384, the curve that Flower's nodes sign with."""
    return ec.generate_private_key(ec.SECP384R1())


def write_secret(file: Path, content: bytes) -> None:
    """Write a file that only its owner can read; raises ``FileExistsError`` rather than replace a secret.

    A folder made for it is its owner's alone as well.
    """
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with naming(file), os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        file.unlink()  # a part of a secret is none, and would be in the way of a whole one
        raise


def private_pem(key: PrivateKey) -> bytes:
    """The private key as PEM, unencrypted: its file's mode protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_pem(key: PublicKey) -> bytes:
    """The public key as PEM."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def read_private_key(file: Path) -> PrivateKey:
    """A private key from its file.

    Raises:
        KeyFileError: no such file, one that others can read or this user cannot, or not a key on P-384.
    """
    if not file.exists():
        raise KeyFileError(str(file), "must exist")
    mode = file.stat().st_mode & 0o777
    if mode & 0o077:
        raise KeyFileError(str(file), "must be readable by its owner alone", value=oct(mode), remedy="chmod 600 it.")
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), None)
    except OSError as error:
        remedy = "Run as the user who made it."
        raise KeyFileError(str(file), "must be readable", value=type(error).__name__, remedy=remedy) from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyFileError(str(file), "must hold a private key as PEM, without a password") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise KeyFileError(str(file), "must hold a private key on the curve P-384")
    return key


def parse_public_key(pem: bytes, name: str) -> PublicKey:
    """A public key from PEM; raises ``KeyFileError`` that speaks of ``name``."""
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise KeyFileError(name, "must hold a public key as PEM") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        remedy = "Make one at the site by fedretina site keys."
        raise KeyFileError(name, "must hold a public key on the curve P-384", remedy=remedy)
    return key


def fingerprint(key: PublicKey) -> str:
    """What two people compare over the telephone to know that they speak of the same key."""
    return in_fours(hashlib.sha256(public_pem(key)).hexdigest())


def in_fours(digits: str) -> str:
    """As much of a digest as people compare, in groups of four."""
    return " ".join(digits[i : i + 4] for i in range(0, _SHOWN, 4))


def sign(key: PrivateKey, content: bytes) -> bytes:
    """An ECDSA signature over SHA-256."""
    return key.sign(content, ec.ECDSA(hashes.SHA256()))


def is_signed(key: PublicKey, content: bytes, signature: bytes) -> bool:
    """Did the holder of the key sign just this?"""
    try:
        key.verify(signature, content, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True
