"""Does a coordinator prove who it is, to whoever holds its kit and to nobody else?"""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from server.certificates import (
    CA_CERTIFICATE,
    CA_KEY,
    SERVER_CERTIFICATE,
    SERVER_KEY,
    create_authority,
    issue_server_certificate,
)
from shared.keys import read_private_key

ADDRESSES = ["coordinator.example", "192.0.2.7", "2001:db8::7", "127.0.0.1", "localhost"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create_authority(tmp_path)
    issue_server_certificate(tmp_path, ADDRESSES)
    return tmp_path


def certificate(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


def handshake(server: Path, client: Path, name: str) -> None:
    """Shake hands in memory; raises ``ssl.SSLCertVerificationError`` when the client does not trust the server."""
    there, here = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=str(client))
    there.load_cert_chain(server / SERVER_CERTIFICATE, server / SERVER_KEY)
    here.verify_flags |= ssl.VERIFY_X509_STRICT
    one, two = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [here.wrap_bio(one, two, server_hostname=name), there.wrap_bio(two, one, server_side=True)]
    left = list(ends)
    for _ in range(10):
        for end in list(left):
            try:
                end.do_handshake()
                left.remove(end)
            except ssl.SSLWantReadError:
                pass
    assert not left


@pytest.mark.parametrize("name", ADDRESSES)
def test_whoever_holds_the_kit_trusts_the_server_at_each_address(folder: Path, name: str) -> None:
    handshake(folder, folder / CA_CERTIFICATE, name)


@pytest.mark.parametrize("name", ["elsewhere.example", "127.0.0.2", "sub.coordinator.example"])
def test_the_certificate_counts_for_no_other_address(folder: Path, name: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(folder, folder / CA_CERTIFICATE, name)


def test_another_authority_counts_for_nothing(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    create_authority(other)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(folder, other / CA_CERTIFICATE, "localhost")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_agrees(folder: Path) -> None:
    def says(arguments: Sequence[str | Path]) -> str:
        done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, timeout=20, check=True)
        return done.stdout

    checked: list[str | Path] = ["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", folder / CA_CERTIFICATE]
    assert says([*checked, folder / SERVER_CERTIFICATE]).strip().endswith("OK")
    text = says(["x509", "-in", folder / SERVER_CERTIFICATE, "-noout", "-text"])
    assert "secp384r1" in text
    assert "DNS:coordinator.example, IP Address:192.0.2.7" in text


def test_private_keys_are_for_their_owner(folder: Path) -> None:
    for name in (CA_KEY, SERVER_KEY):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
        assert isinstance(read_private_key(folder / name).curve, ec.SECP384R1)


def test_the_server_is_no_authority(folder: Path) -> None:
    found, authority = certificate(folder / SERVER_CERTIFICATE), certificate(folder / CA_CERTIFICATE)
    found.verify_directly_issued_by(authority)
    assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not found.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert list(found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH
    ]
    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)


def test_names_and_numbers_of_addresses_are_kept_apart(folder: Path) -> None:
    found = certificate(folder / SERVER_CERTIFICATE).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert found.value.get_values_for_type(x509.DNSName) == ["coordinator.example", "localhost"]
    numbers = [ip_address(text) for text in ("192.0.2.7", "2001:db8::7", "127.0.0.1")]
    assert found.value.get_values_for_type(x509.IPAddress) == numbers


def test_certificates_count_from_now_for_as_long_as_clients_accept(folder: Path) -> None:
    now = datetime.now(UTC)
    for name, days in ((SERVER_CERTIFICATE, 825), (CA_CERTIFICATE, 3650)):
        found = certificate(folder / name)
        assert found.not_valid_before_utc < now - timedelta(minutes=9)
        assert abs(found.not_valid_after_utc - now - timedelta(days=days)) < timedelta(minutes=1)


def test_an_authority_is_never_replaced(folder: Path) -> None:
    before = (folder / CA_KEY).read_bytes(), (folder / CA_CERTIFICATE).read_bytes()
    with pytest.raises(FileExistsError):
        create_authority(folder)
    assert ((folder / CA_KEY).read_bytes(), (folder / CA_CERTIFICATE).read_bytes()) == before


def test_a_new_server_certificate_needs_no_new_kits(folder: Path) -> None:
    before = (folder / SERVER_KEY).read_bytes()
    issue_server_certificate(folder, ["moved.example"])
    assert (folder / SERVER_KEY).read_bytes() != before
    handshake(folder, folder / CA_CERTIFICATE, "moved.example")


def test_an_address_may_be_long(folder: Path) -> None:
    long = ".".join(["a" * 60] * 4)
    issue_server_certificate(folder, [long])
    handshake(folder, folder / CA_CERTIFICATE, long)
