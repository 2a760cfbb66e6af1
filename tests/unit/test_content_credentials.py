"""Content Credentials: what is painted is signed with the user's certificate wherever it leaves, what was brought never is."""

from __future__ import annotations

import base64
import io
import json
import random
import re
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import c2pa
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image as PILImage

from duogen.cli.main import Answer, main, write_answer
from duogen.content_credentials import encode_signed, read_signer, use_signer
from duogen.conversation import Conversation, Image, load_conversation, save_conversation
from duogen.library.export import as_html, as_zip
from duogen.library.picture_file import PictureInfo, is_signed
from duogen.library.pictures import Gallery
from duogen.provenance import TERMS, Origin, encode_picture, find_origin
from ui.api.pictures import encode_base64
from ui.parts.pictures import PictureFolder

PEM = serialization.Encoding.PEM
PKCS8, SEC1 = serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL
PLAIN = serialization.NoEncryption()
NOW = datetime.now(UTC)
CA_KEY = ec.generate_private_key(ec.SECP256R1())


def certify(key: Any, name: str = "Signer", days: float = 30, starts: float = -1, use: Any = ExtendedKeyUsageOID.EMAIL_PROTECTION) -> bytes:
    """A certificate in PEM form by the authority of the tests; that of the authority itself for its own key."""
    own = key is CA_KEY
    subject, issuer = (
        x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, each), x509.NameAttribute(NameOID.COMMON_NAME, each)])
        for each in ("Authority" if own else name, "Authority")
    )
    bits = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"))
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    made = made.serial_number(x509.random_serial_number())
    made = made.not_valid_before(NOW + timedelta(days=starts)).not_valid_after(NOW + timedelta(days=days))
    made = made.add_extension(x509.BasicConstraints(own, None), True)
    made = made.add_extension(x509.KeyUsage(digital_signature=not own, key_cert_sign=own, crl_sign=own, **dict.fromkeys(bits, False)), True)
    made = made.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    made = made.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(CA_KEY.public_key()), False)
    if not own:
        made = made.add_extension(x509.ExtendedKeyUsage([use]), False)
    return made.sign(CA_KEY, hashes.SHA256()).public_bytes(PEM)


CA = certify(CA_KEY)
KEY = ec.generate_private_key(ec.SECP256R1())


def write_files(folder: Path, key: Any = KEY, form: Any = PKCS8, chain: bytes = b"") -> tuple[Path, Path]:
    """The files of a certificate and of its key."""
    (folder / "certificate.pem").write_bytes(chain or certify(key) + CA)
    (folder / "key.pem").write_bytes(key.private_bytes(PEM, form, PLAIN))
    return folder / "certificate.pem", folder / "key.pem"


@pytest.fixture(autouse=True)
def signs_no_more() -> Iterator[None]:
    yield
    use_signer(None)


@pytest.fixture
def own_signer(tmp_path: Path) -> None:
    use_signer(read_signer(*write_files(tmp_path)))


def read_manifest(data: bytes, kind: str = "png") -> tuple[str, list[dict]]:
    """What a reader that trusts the authority of the tests says of a file: its verdict, and the actions."""
    context = c2pa.Context.from_dict({"trust": {"trust_anchors": CA.decode()}, "verify": {"remote_manifest_fetch": False}})
    reader = c2pa.Reader("video/mp4" if kind == "mp4" else f"image/{kind}", io.BytesIO(data), context=context)
    manifest = reader.get_active_manifest()
    assert manifest and manifest["claim_generator_info"][0]["name"] == "DuoGen"
    (actions,) = (each["data"]["actions"] for each in manifest["assertions"] if each["label"].startswith("c2pa.actions"))
    return str(reader.get_validation_state()), actions


def verdict(data: bytes, kind: str = "png") -> str:
    """What a reader says: Trusted, Valid or Invalid; "" of a file without a signature."""
    try:
        return read_manifest(data, kind)[0]
    except c2pa.C2paError.ManifestNotFound:
        return ""


def plain(seed: int = 1) -> PILImage.Image:
    return PILImage.frombytes("RGB", (40, 30), random.Random(seed).randbytes(40 * 30 * 3))


def talk() -> Conversation:
    """A brought picture, which another program has marked, and a painted one."""
    asked = Conversation().say("user", Image(plain(1), origin=Origin.PAINTED), "Make it blue.")
    return asked.say("assistant", "Step 1. It is blue.", Image(plain(2), seed=3, seconds=1.0, origin=Origin.CHANGED))


@pytest.mark.parametrize(
    ("key", "form"),
    [
        (KEY, PKCS8),
        (ec.generate_private_key(ec.SECP384R1()), SEC1),
        (rsa.generate_private_key(65537, 2048), SEC1),
        (ed25519.Ed25519PrivateKey.generate(), PKCS8),
    ],
    ids=["P-256", "P-384", "RSA", "Ed25519"],
)
def test_a_reader_trusts_what_each_kind_of_key_signed_and_sees_a_changed_byte(key: Any, form: Any, tmp_path: Path) -> None:
    use_signer(read_signer(*write_files(tmp_path, key, form, CA + certify(key))))  # in the wrong order too
    created = {"action": "c2pa.created", "digitalSourceType": TERMS + Origin.PAINTED}
    edited = [{"action": "c2pa.created", "digitalSourceType": TERMS + Origin.CHANGED}, created | {"action": "c2pa.edited"}]
    for kind in ("PNG", "JPEG", "WEBP"):
        for origin, actions in ((Origin.PAINTED, [created]), (Origin.CHANGED, edited)):
            data = encode_signed(plain(), kind, origin, painted=True)
            assert read_manifest(data, kind.lower()) == ("Trusted", actions) and find_origin(data) is origin
            at = data.rindex(b"IDAT") + 20 if kind == "PNG" else len(data) // 2 + 2000 if kind == "JPEG" else data.index(b"VP8 ") + 60
            assert verdict(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], kind.lower()) == "Invalid"


def test_nothing_is_signed_without_a_certificate_or_without_an_origin(tmp_path: Path) -> None:
    unsigned = encode_picture(plain(), "PNG", Origin.PAINTED)
    assert encode_signed(plain(), "PNG", Origin.PAINTED, painted=True) == unsigned
    use_signer(read_signer(*write_files(tmp_path)))
    assert encode_signed(plain(), "PNG", Origin.PAINTED, painted=False) == unsigned
    assert verdict(encode_signed(plain(), "PNG", None, painted=True)) == ""


@pytest.mark.usefixtures("own_signer")
def test_every_way_out_signs_what_was_painted_alone(tmp_path: Path) -> None:
    brought, painted = (image for turn in talk().path() for image in turn.images())
    pages = re.findall(r"data:image/(\w+);base64,([^\"]+)", as_html(talk()))
    assert [verdict(base64.b64decode(data), kind) for kind, data in pages] == ["", "Trusted"]
    with zipfile.ZipFile(io.BytesIO(as_zip(talk()))) as packed:
        assert [verdict(packed.read(name)) for name in packed.namelist() if name.endswith("png")] == ["", "Trusted"]
    for kind in ("PNG", "JPEG", "WEBP"):
        assert [verdict(base64.b64decode(encode_base64(each, kind)), kind.lower()) for each in (brought, painted)] == ["", "Trusted"]
    write_answer(Answer(conversation=talk(), parts=[painted]), tmp_path / "answer")
    assert verdict((tmp_path / "answer" / "01.png").read_bytes()) == "Trusted"


def test_the_page_signs_what_it_showed_before_unsigned(tmp_path: Path) -> None:
    brought, painted = (image for turn in talk().path() for image in turn.images())
    before = [PictureFolder(tmp_path / "shown", 99).keep_image(each) for each in (brought, painted)]
    use_signer(read_signer(*write_files(tmp_path)))
    folder = PictureFolder(tmp_path / "shown", 99)
    after = [folder.keep_image(each, most) for most in (0, 20) for each in (brought, painted)]
    assert [verdict(Path(unquote(file)).read_bytes()) for file in after] == ["", "Trusted"] * 2
    assert after[0] == before[0] and after[1] != before[1]


@pytest.mark.usefixtures("own_signer")
def test_a_conversation_keeps_one_file_for_each_content(tmp_path: Path) -> None:
    folder = tmp_path / "talk"
    save_conversation(talk(), folder)
    files = {file: file.read_bytes() for file in (folder / "images").iterdir()}
    assert sorted(map(verdict, files.values())) == ["", "Trusted"]
    read = load_conversation(folder)
    save_conversation(read, folder)
    assert {file: file.read_bytes() for file in (folder / "images").iterdir()} == files, "the same picture again is the same file"
    assert read.path()[-1].images()[0].picture.tobytes() == plain(2).tobytes()


def test_the_library_signs_anew_and_reads_its_settings_back(tmp_path: Path, own_signer: None) -> None:
    gallery, other = Gallery(tmp_path / "one"), Gallery(tmp_path / "two")
    about = PictureInfo("a boat", seed=5, origin=Origin.PAINTED)
    made = gallery.add(plain(), about)
    marked = gallery.set_favourite(made.id, True)
    assert verdict(marked.file.read_bytes()) == "Trusted" and marked.about.favourite
    again, known = other.import_file(marked.file)
    assert known and (again.about.seed, again.about.origin, again.id) == (5, Origin.PAINTED, made.id)
    assert not is_signed(again.file.read_bytes()), "it was brought to this library"
    assert not is_signed(other.set_favourite(again.id, True).file.read_bytes())
    assert not is_signed(gallery.add(plain(2), PictureInfo(painted=False, origin=Origin.PAINTED)).file.read_bytes())
    use_signer(None)
    assert verdict(gallery.set_favourite(made.id, False).file.read_bytes()) == "", "a broken signature would be worse than none"


def test_a_certificate_that_expires_later_costs_no_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    use_signer(replace(read_signer(*write_files(tmp_path)), chain=certify(KEY, days=-0.1) + CA))
    data = encode_signed(plain(), "PNG", Origin.PAINTED, painted=True)
    assert data == encode_picture(plain(), "PNG", Origin.PAINTED) and "could not be signed" in caplog.text


LOCKED = KEY.private_bytes(PEM, PKCS8, serialization.BestAvailableEncryption(b"secret"))
OTHER = ec.generate_private_key(ec.SECP256K1())


@pytest.mark.parametrize(
    ("certificate", "key", "reason"),
    [
        (None, None, "private key .*key.pem cannot be read"),
        (None, LOCKED, "has a password"),
        (None, certify(KEY), "holds no private key"),
        (b"nothing", None, "holds no certificate"),
        (CA, None, "does not belong to the certificate"),
        (certify(KEY, days=-0.1) + CA, None, "expired on 20"),
        (certify(KEY, starts=1), None, "is valid from 20"),
        (certify(KEY, use=ExtendedKeyUsageOID.SERVER_AUTH) + CA, None, "cannot sign pictures .*the certificate is invalid"),
        (certify(OTHER), OTHER.private_bytes(PEM, PKCS8, PLAIN), "has no algorithm for the key"),
    ],
)
def test_what_cannot_sign_is_refused_in_one_sentence(certificate: bytes | None, key: bytes | None, reason: str, tmp_path: Path) -> None:
    files = write_files(tmp_path, chain=certificate or b"")
    if key:
        files[1].write_bytes(key)
    elif certificate is None:
        files[1].unlink()
    with pytest.raises(ValueError, match=reason) as raised:
        read_signer(*files)
    assert "\n" not in str(raised.value)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(ValueError, match="pip install c2pa-python"):
        read_signer(*write_files(tmp_path))


def test_the_command_line_signs_a_guide_and_refuses_half_of_the_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_conversation(talk(), tmp_path / "talk")
    certificate, key = write_files(tmp_path)
    command = ["export", str(tmp_path / "talk"), "--to", str(tmp_path / "guide.zip"), "--sign-with", str(certificate)]
    assert main(command) == 2 and "--sign-with and --sign-key belong together" in capsys.readouterr().err
    assert main([*command, "--sign-key", str(key)]) == 0
    with zipfile.ZipFile(tmp_path / "guide.zip") as packed:
        assert [verdict(packed.read(name)) for name in packed.namelist() if name.endswith("png")] == ["", "Trusted"]
    reply = json.loads((tmp_path / "talk" / "conversation.json").read_text())
    assert reply["turns"][1]["parts"][1]["origin"] == Origin.CHANGED
