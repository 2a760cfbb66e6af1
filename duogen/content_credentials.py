"""Content Credentials: painted pictures signed as C2PA wants it, with a certificate of the user. Without one nothing is signed.

A signature covers the whole file: pixels, mark of origin and settings. It is made where a file is written, and needs no network.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image as PILImage

from duogen.provenance import TERMS, Origin, encode_picture

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

LOG = logging.getLogger(__name__)
CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
# The manifest holds no second, small picture, and nothing is fetched.
SETTINGS = {"builder": {"thumbnail": {"enabled": False}}, "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
MISSING = "Signing needs one more package that works on this machine: pip install c2pa-python"
Read = TypeVar("Read")


@dataclass(frozen=True)
class PictureSigner:
    """A certificate and its key.

    Attributes:
        algorithm: the name that C2PA has for it.
        chain: the certificates in PEM form, that of the key first.
        key: the private key in PEM form (PKCS 8).
    """

    algorithm: str
    chain: bytes
    key: bytes = field(repr=False)

    def sign(self, data: bytes, kind: str, origin: Origin) -> bytes:
        """A picture's file with a manifest that names its origin; an earlier manifest goes.

        Args:
            kind: "PNG", "JPEG", "WEBP", "GIF" or "MP4".

        Raises:
            c2pa.C2paError: the certificate does not fit what C2PA asks for, or has expired.
        """
        import c2pa

        signed = io.BytesIO()
        signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(self.algorithm, self.chain, self.key, None))
        with signer, c2pa.Context.from_dict(SETTINGS) as context, c2pa.Builder(describe_making(origin), context) as builder:
            builder.sign(signer, f"{'video' if kind == 'MP4' else 'image'}/{kind.lower()}", io.BytesIO(data), signed)
        return signed.getvalue()


_used: PictureSigner | None = None


def use_signer(signer: PictureSigner | None) -> None:
    """Sign what this process paints from now on."""
    global _used
    _used = signer


def signer_id() -> str:
    """What tells files that were signed with this certificate from others; "" where nothing is signed."""
    return hashlib.sha256(_used.chain).hexdigest() if _used else ""


def add_signing_flags(command: argparse.ArgumentParser) -> None:
    about = "sign painted pictures as C2PA wants it, with this certificate and those that vouch for it; needs --sign-key"
    command.add_argument("--sign-with", type=Path, metavar="CERTIFICATE.pem", help=about)
    command.add_argument("--sign-key", type=Path, metavar="KEY.pem", help="the private key of --sign-with, without a password")


def sign_as_flags_say(given: argparse.Namespace) -> None:
    """Use the certificate of the flags.

    Raises:
        ValueError: it cannot be used; one sentence.
    """
    if (given.sign_with is None) != (given.sign_key is None):
        raise ValueError("--sign-with and --sign-key belong together; give both.")
    use_signer(read_signer(given.sign_with, given.sign_key) if given.sign_with else None)


def encode_signed(picture: PILImage.Image, kind: str, origin: Origin | None, painted: bool, **settings: Any) -> bytes:
    """As `encode_picture`, and signed where DuoGen painted it."""
    data = encode_picture(picture, kind, origin, **settings)
    return sign_picture(data, kind, origin) if painted else data


def sign_picture(data: bytes, kind: str, origin: Origin | None) -> bytes:
    """Sign a painted picture's file; as it is without a certificate or an origin.

    A certificate that expired since the start costs no picture: it stays unsigned, and the log says so.
    """
    if _used is None or origin is None:
        return data
    try:
        return _used.sign(data, kind, origin)
    except Exception as error:  # the library has an error for each step
        LOG.warning("A picture could not be signed (%s).", error)
        return data


def describe_making(origin: Origin) -> dict[str, Any]:
    """The manifest of a picture of this origin. C2PA wants it to begin with how the picture came to be."""
    actions = [{"action": "c2pa.created", "digitalSourceType": TERMS + origin}]
    if origin is Origin.CHANGED:
        actions.append({"action": "c2pa.edited", "digitalSourceType": TERMS + Origin.PAINTED})
    return {
        "claim_generator_info": [{"name": "DuoGen"}],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}],
    }


def read_signer(certificate: Path, key: Path) -> PictureSigner:
    """Read a certificate and its key, and sign a picture with them on trial.

    Args:
        certificate: PEM, with the certificates that vouch for it.
        key: PEM.

    Raises:
        ValueError: they cannot be used; one sentence.
    """
    try:
        import c2pa
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
    except (ImportError, OSError, RuntimeError) as error:  # its own library may be missing or unloadable
        raise ValueError(MISSING) from error
    private = _read_pem(key, "private key", lambda data: serialization.load_pem_private_key(data, None))
    chain = _read_pem(certificate, "certificate", x509.load_pem_x509_certificates)
    own = next((each for each in chain if each.public_key() == private.public_key()), None)
    if own is None:
        raise ValueError(f"The key {key} does not belong to the certificate {certificate}; give the key that it was made for.")
    _check_dates(own, certificate)
    pem = serialization.Encoding.PEM
    signer = PictureSigner(
        _find_algorithm(private, key),
        b"".join(each.public_bytes(pem) for each in (own, *(each for each in chain if each != own))),
        private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
    try:
        signer.sign(encode_picture(PILImage.new("RGB", (8, 8)), "PNG", None), "PNG", Origin.PAINTED)
    except c2pa.C2paError as error:
        reason = " ".join(str(error).split())
        needs = "C2PA wants one for e-mail protection or document signing that is no authority itself"
        raise ValueError(f"The certificate {certificate} cannot sign pictures ({reason}); {needs}.") from error
    return signer


def _read_pem(file: Path, name: str, read: Callable[[bytes], Read]) -> Read:
    """Raises ValueError: the file is missing, has a password, or holds something else."""
    try:
        return read(file.read_bytes())
    except OSError as error:
        raise ValueError(f"The {name} {file} cannot be read ({error.strerror}); check its path.") from error
    except TypeError as error:  # what the library raises where a password is wanted
        raise ValueError(f"The {name} {file} has a password; write it without one: openssl pkey -in {file} -out plain.pem") from error
    except Exception as error:  # whatever a damaged file raises
        raise ValueError(f"{file} holds no {name} in PEM form; convert it with openssl.") from error


def _check_dates(own: Certificate, file: Path) -> None:
    """Raises ValueError: the certificate has expired or is not valid yet."""
    now = datetime.now(UTC)
    if own.not_valid_after_utc < now:
        raise ValueError(f"The certificate {file} expired on {own.not_valid_after_utc:%Y-%m-%d}; get a new one from who made it.")
    if own.not_valid_before_utc > now:
        raise ValueError(f"The certificate {file} is valid from {own.not_valid_before_utc:%Y-%m-%d} on; check this machine's clock.")


def _find_algorithm(private: Any, file: Path) -> str:
    """The algorithm that a key signs with. Raises ValueError: C2PA knows none for it."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    found = None
    match private:
        case ec.EllipticCurvePrivateKey():
            found = CURVES.get(private.curve.name)
        case rsa.RSAPrivateKey():
            found = "ps256"
        case ed25519.Ed25519PrivateKey():
            found = "ed25519"
    if found is None:
        raise ValueError(f"C2PA has no algorithm for the key {file}; use one of P-256, P-384, P-521, RSA or Ed25519.")
    return found
