"""The door for pictures that people bring: what comes through is sound, and what does not is named."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage
from PIL import ImageCms

from duogen.picture_input import MAX_PIXELS, MOST_SCANS, THINNEST, open_picture, pad_thin
from tests.support.colour_profiles import cmyk_profile, matrix_profile

CONTAINERS = {
    "PNG": {}, "JPEG": {"quality": 90}, "WEBP": {"lossless": True}, "AVIF": {"quality": 90}, "HEIF": {"quality": 90}, "GIF": {}, "TIFF": {},
    "BMP": {}, "ICO": {"sizes": [(48, 36)]}, "JPEG2000": {}, "PPM": {}, "QOI": {}, "DDS": {}, "SGI": {}, "PCX": {}, "TGA": {},
}  # fmt: skip
PILLOWS_WORDS = ("PIL", "tile", "identify", "decoder", "BytesIO", "stream", "bytes not processed", "buffer", "Error", "broken", "index")


def scene(size: tuple[int, int] = (48, 36)) -> PILImage.Image:
    """A picture with soft colours, so that lossy formats keep it."""
    colours = np.random.default_rng(3).integers(0, 255, (3, 4, 3), dtype=np.uint8)
    return PILImage.fromarray(colours).resize(size, PILImage.Resampling.BICUBIC)


def encode(picture: PILImage.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def colour(data: bytes | Path, at: tuple[int, int] = (2, 2)) -> tuple[int, ...]:
    return tuple(open_picture(data).getpixel(at))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(png: bytes, kind: bytes, data: bytes) -> bytes:
    """A PNG with one more chunk after its header."""
    return png[:33] + chunk(kind, data) + png[33:]


def tiff(values: np.ndarray, bits: int, sample_format: int, packed: bytes | None = None) -> bytes:
    """A grey, uncompressed TIFF; Pillow writes not all of them."""
    data = values.tobytes() if packed is None else packed
    tags = [
        (256, values.shape[1]), (257, values.shape[0]), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, values.shape[0]),
        (279, len(data)), (339, sample_format),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("kind", CONTAINERS)
def test_every_container_comes_through(kind):
    picture = open_picture(encode(scene(), kind, **CONTAINERS[kind]))
    assert (picture.mode, picture.size, picture.info) == ("RGB", (48, 36), {})
    apart = np.abs(np.asarray(picture).astype(int) - np.asarray(scene())).max()
    assert apart <= (40 if kind in ("JPEG", "AVIF", "HEIF", "GIF") else 0)


@pytest.mark.parametrize("kind", CONTAINERS)
@pytest.mark.parametrize("share", (0.1, 0.4, 0.8))
def test_a_picture_that_is_cut_off_is_refused(kind, share):
    whole = encode(scene(), kind, **CONTAINERS[kind])
    with pytest.raises(ValueError, match="cut short|cannot be read as a picture"):
        open_picture(whole[: int(len(whole) * share)])


def test_a_download_that_stopped_is_refused_though_the_file_has_its_whole_length():
    noise = PILImage.effect_noise((200, 200), 90).convert("RGB")
    for kind in ("PNG", "WEBP", "AVIF", "HEIF", "JPEG"):
        whole = encode(noise, kind, quality=95)
        half = len(whole) // 2
        with pytest.raises(ValueError, match="cut short"):
            open_picture(whole[:half] + bytes(len(whole) - half))


def test_a_jpeg_without_its_lower_half_is_refused_though_it_has_an_end():
    whole = encode(PILImage.effect_noise((200, 200), 90).convert("RGB"), "JPEG")
    with pytest.raises(ValueError, match="the JPEG file is damaged or cut short"):
        open_picture(whole[: len(whole) // 2] + b"\xff\xd9")
    assert open_picture(whole + b"a film of the same moment").size == (200, 200)


def test_a_jpeg_of_thousands_of_layers_is_refused():
    whole = encode(scene(), "JPEG", progressive=True)
    at = whole.rindex(b"\xff\xda")
    with pytest.raises(ValueError, match="too many layers"):
        open_picture(whole[:at] + whole[at:-2] * (MOST_SCANS + 1) + whole[-2:])


@pytest.mark.parametrize(
    "data",
    [
        b"qoif" + struct.pack(">II", 1600, 1600) + b"\3\0" + bytes(64),
        b"P3 1600 1600 255\n0 0 0",
        b"P6 1600 1600 65535\n" + bytes(64),
        b"DDS " + struct.pack("<7I44xII4s5I20x", 124, 0x1007, 1600, 1600, 0, 0, 0, 32, 0x40, b"", 16, 0xF800, 0x7E0, 31, 0),
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 1078, 0, 0, 1078, 40, 1600, 1600, 1, 8, 1, 0, 0, 0, 256, 0) + bytes(1024),
    ],
    ids=["qoi", "ppm in words", "ppm of 16 bits", "dds", "bmp"],
)
def test_a_large_picture_of_a_kind_that_is_decoded_in_python_is_refused(data):
    with pytest.raises(ValueError, match="has 1600 x 1600 pixels in a kind of file that takes too long to read; save it as PNG"):
        open_picture(data)


def test_what_a_png_says_beside_its_pixels_is_bounded():
    png, much = encode(scene(), "PNG"), zlib.compress(bytes(30_000_000), 9)
    for kind, data in ((b"zTXt", b"Comment\0\0" + much), (b"iTXt", b"Comment\0\1\0\0\0" + much), (b"iCCP", b"x\0\0" + much)):
        with pytest.raises(ValueError, match="too much text or too large a colour profile"):
            open_picture(with_chunk(png, kind, data))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'<?xml version="1.0"?>\n<!-- a -->\n<svg xmlns="http://www.w3.org/2000/svg"/>', "is an SVG drawing"),
        (b"\xef\xbb\xbf  <SVG/>", "is an SVG drawing"),
        (b"<!DOCTYPE html><html><body><svg/></body></html>", "is a web page"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  \0\0\0\x08mdat" + bytes(40), "is a video"),
        (b"\0\0\0\x20ftypisom" + bytes(40), "is a video"),
        (b"\0\0\x10\0moov" + bytes(40), "is a video"),
        (b"RIFF\0\0\0\0AVI LIST", "is a video"),
        (b"\x1a\x45\xdf\xa3" + bytes(40), "is a video"),
        (b"%PDF-1.7\n%", "is a PDF document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "is a PostScript drawing"),
        (b"II*\0\x10\0\0\0CR\x02\0" + bytes(40), "is a camera's raw file"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1" + bytes(40), "is a camera's raw file"),
        (b"FUJIFILMCCD-RAW 0201", "is a camera's raw file"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "is a JPEG XL file"),
        (b"PK\x03\x04" + bytes(40), "is a zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n", "git lfs pull"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), "the HEIC file is damaged or cut short"),
        (b"GIF89a\0\0\0\0\0\0\0;", "the GIF file is damaged or cut short"),
        (b"qoif\0\0\0\x0a\0\0\0\x0a\x03\0", "the QOI file is damaged or cut short"),
        (b"DDS |" + bytes(123), "the DDS file is damaged or cut short"),
        (b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40, "the TIFF file is damaged or cut short"),
        (b"8BPS\0\1" + b"\xff" * 60, "the Photoshop file is damaged or cut short"),
        (b"", "the file is empty"),
        (b"BMW is a make of cars", "bring a PNG, JPEG, WebP, AVIF or HEIC file"),
        (b"words", "bring a PNG, JPEG, WebP, AVIF or HEIC file"),
    ],
)
def test_what_is_no_picture_is_called_by_its_name(data, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        open_picture(data)
    assert not any(word in str(caught.value) for word in PILLOWS_WORDS)


def test_a_raw_file_in_the_form_of_a_tiff_is_not_taken_for_its_thumbnail(tmp_path):
    dng = encode(scene(), "TIFF", tiffinfo={50706: bytes([1, 4, 0, 0])})
    with pytest.raises(ValueError, match="is a camera's raw file; export it as JPEG"):
        open_picture(dng)
    (tmp_path / "DSC_1.NEF").write_bytes(encode(scene(), "TIFF"))
    with pytest.raises(ValueError, match=r"DSC_1\.NEF is a camera's raw file"):
        open_picture(tmp_path / "DSC_1.NEF")


def test_a_folder_is_refused_with_its_name(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        open_picture(tmp_path)


@pytest.mark.parametrize("size", ((4, 1000), (1, 3000), (3000, 14), (201, 1)))
def test_too_thin_a_picture_is_refused_or_laid_on_white(size):
    data = encode(PILImage.new("RGB", size, "red"), "PNG")
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} pixels, which is thinner than 1 to 200; crop it"):
        open_picture(data)
    wide = open_picture(data, letterbox=True)
    assert max(wide.size) == max(size) <= THINNEST * min(wide.size)
    assert {tuple(each) for each in np.asarray(wide).reshape(-1, 3)} == {(255, 0, 0), (255, 255, 255)}


def test_a_line_that_would_need_gigabytes_of_white_around_it_is_refused():
    data = encode(PILImage.new("1", (1_000_000, 1)), "PNG")
    with pytest.raises(ValueError, match="1000000 x 1 pixels, which is thinner than 1 to 200"):
        open_picture(data, letterbox=True)


@pytest.mark.parametrize("size", ((8, 1500), (200, 1), (1, 1), (3100, 16)))
def test_a_picture_that_is_not_too_thin_is_as_it_was(size):
    data = encode(PILImage.new("RGB", size), "PNG")
    assert open_picture(data).size == open_picture(data, letterbox=True).size == size
    small = open_picture(data)
    small.thumbnail((1536, 1536))  # as the chat does
    assert pad_thin(small) is small


def test_a_picture_in_an_icon_is_measured_too():
    icon = bytearray(encode(scene(), "ICO", sizes=[(48, 36)]))
    at = icon.index(b"IHDR")
    icon[at + 4 : at + 12] = struct.pack(">II", 9000, 9000)
    icon[at + 17 : at + 21] = struct.pack(">I", zlib.crc32(icon[at : at + 17]))
    with pytest.raises(ValueError):
        open_picture(bytes(icon))
    assert MAX_PIXELS == PILImage.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", ("PNG", "JPEG", "TIFF", "WEBP", "AVIF", "HEIF"))
def test_colours_become_srgb_and_nothing_else_stays(kind):
    plain = PILImage.new("RGB", (16, 16), (200, 80, 60))
    place = PILImage.Exif()
    place.get_ifd(0x8825)[2] = (52.0, 31.0, 12.0)
    options = {"lossless": True} if kind == "WEBP" else {} if kind == "TIFF" else {"quality": 100}
    options |= {"exif": place} if kind != "TIFF" else {}
    picture = open_picture(encode(plain, kind, icc_profile=matrix_profile("display-p3"), **options))
    assert np.abs(np.subtract(picture.getpixel((8, 8)), (218, 67, 48))).max() <= 6
    assert picture.info == {} and not dict(picture.getexif()) and b"XYZ" not in encode(picture, "PNG")


def test_adobe_rgb_is_more_colourful_than_it_says():
    png = encode(PILImage.new("RGB", (8, 8), (200, 80, 60)), "PNG", icc_profile=matrix_profile("adobe-rgb"))
    assert np.abs(np.subtract(colour(png), (230, 79, 56))).max() <= 3


@pytest.mark.parametrize("mode", ("P", "RGBA", "PA"))
def test_a_profile_counts_for_palettes_and_with_alpha(mode):
    plain = PILImage.new("RGB", (8, 8), (200, 80, 60))
    picture = plain.quantize(4) if mode == "P" else plain.convert("RGBA")
    if mode == "PA":
        picture = picture.quantize(4)
        picture.info["transparency"] = bytes([255] * 4)
    png = encode(picture, "PNG", icc_profile=matrix_profile("adobe-rgb"))
    assert np.abs(np.subtract(colour(png), (230, 79, 56))).max() <= 3


def test_grey_profiles_are_followed_on_grey_pictures_only():
    linear = matrix_profile("linear-grey")
    for picture in (PILImage.new("L", (8, 8), 120), PILImage.new("LA", (8, 8), (120, 255))):
        assert np.abs(np.subtract(colour(encode(picture, "PNG", icc_profile=linear)), 182)).max() <= 2
    assert colour(encode(PILImage.new("RGB", (8, 8), (9, 120, 60)), "PNG", icc_profile=linear)) == (9, 120, 60)


def test_an_rgb_profile_counts_on_a_grey_picture():
    grey = encode(PILImage.new("L", (8, 8), 120), "PNG", icc_profile=matrix_profile("linear-rgb"))
    assert np.abs(np.subtract(colour(grey), 182)).max() <= 2


def test_the_profile_of_a_printer_is_followed():
    inks = PILImage.new("CMYK", (8, 8), (255, 0, 0, 0))
    assert colour(encode(inks, "TIFF")) == (0, 255, 255)
    said = colour(encode(inks, "TIFF", icc_profile=cmyk_profile({(255, 0, 0, 0): (50.0, 60.0, 40.0)})))
    assert said[0] > 180 and said[1] < 90, "the profile says that this ink is red"
    fake = encode(inks, "JPEG", quality=100, icc_profile=matrix_profile("display-p3"))
    assert np.abs(np.subtract(colour(fake), (0, 255, 255))).max() <= 3


def test_a_lab_picture_is_no_error():
    red = PILImage.new("RGB", (8, 8), (200, 80, 60))
    lab = ImageCms.profileToProfile(red, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB")
    lab.info.clear()
    assert np.abs(np.subtract(colour(encode(lab, "TIFF")), (200, 80, 60))).max() <= 6


@pytest.mark.parametrize("profile", (b"rubbish", matrix_profile("adobe-rgb")[:200], b"\0" * 3000, matrix_profile("adobe-rgb")[:-30]))
def test_a_damaged_profile_counts_as_none(profile):
    assert colour(encode(PILImage.new("RGB", (8, 8), (200, 80, 60)), "PNG", icc_profile=profile)) == (200, 80, 60)


def test_the_profile_of_srgb_changes_no_pixel():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert open_picture(encode(scene(), "PNG", icc_profile=profile)).tobytes() == scene().tobytes()


@pytest.mark.parametrize(
    ("values", "bits", "sample_format", "grey"),
    [
        (np.full((4, 4), 0.5, np.float32), 32, 3, 127),
        (np.full((4, 4), 128.0, np.float32), 32, 3, 128),
        (np.full((4, 4), 32768.0, np.float32), 32, 3, 127),
        (np.full((4, 4), 128, np.uint32), 32, 1, 128),
        (np.full((4, 4), 32768, np.uint32), 32, 1, 127),
        (np.full((4, 4), 32768, np.uint16), 16, 1, 128),
        (np.full((4, 4), 200, np.uint16), 16, 1, 0),
    ],
)
def test_deep_greys_keep_their_brightness(values, bits, sample_format, grey):
    assert abs(colour(tiff(values, bits, sample_format))[0] - grey) <= 1


@pytest.mark.parametrize("dtype", (np.float32, np.int32))
def test_values_without_a_known_range_are_stretched(dtype):
    values = np.linspace(-3000, 1_000_000, 64).reshape(8, 8).astype(dtype)
    grey = np.asarray(open_picture(tiff(values, 32, 3 if dtype == np.float32 else 2)))[..., 0]
    assert grey.min() == 0 and grey.max() == 255 and (np.diff(grey.flatten().astype(int)) >= 0).all()


def test_numbers_that_are_none_do_no_harm():
    values = np.full((4, 4), 0.5, np.float32)
    values[0] = np.nan, np.inf, -np.inf, 1.0
    assert [colour(tiff(values, 32, 3), (x, 0))[0] for x in range(4)] == [0, 0, 0, 255]


def test_twelve_bits_are_not_black():
    values = np.full((4, 4), 2048)
    packed = bytes([0x80, 0x08, 0x00]) * 8
    assert abs(colour(tiff(values, 12, 1, packed))[0] - 128) <= 1


@pytest.mark.parametrize("kind", ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"))
def test_every_container_comes_upright(kind):
    picture, exif = scene((64, 32)), PILImage.Exif()
    exif[0x0112] = 6  # the top of the scene is to the right
    upright = open_picture(encode(picture, kind, exif=exif.tobytes()))
    assert upright.size == (32, 64)
    wanted = np.asarray(picture.transpose(PILImage.Transpose.ROTATE_270)).astype(int)
    assert np.abs(np.asarray(upright).astype(int) - wanted).mean() < 12


def test_a_damaged_orientation_costs_no_picture():
    exif = PILImage.Exif()
    exif[0x0112] = 6
    data = bytearray(encode(scene(), "JPEG", exif=exif))
    at = data.index(b"Exif") + 14
    data[at : at + 12] = b"\xff" * 12
    assert open_picture(bytes(data)).size == (48, 36)


@pytest.mark.parametrize("kind", ("GIF", "WEBP", "PNG", "AVIF"))
def test_of_an_animation_the_first_frame_comes(kind):
    frames = [PILImage.new("RGB", (16, 16), each) for each in ("red", "blue")]
    red, _, blue = colour(encode(frames[0], kind, save_all=True, append_images=frames[1:]), (8, 8))
    assert red > 200 and blue < 50


def test_alpha_of_every_mode_lies_on_white():
    clear = {"RGBA": (255, 0, 0, 0), "LA": (0, 0)}
    for mode, value in clear.items():
        assert colour(encode(PILImage.new(mode, (8, 8), value), "PNG")) == (255, 255, 255)
    half = colour(encode(PILImage.new("RGBA", (8, 8), (255, 0, 0, 128)), "PNG"))
    assert half[0] == 255 and abs(half[1] - 127) <= 1
    for mode, value in (("L", 7), ("1", 0)):
        assert colour(encode(PILImage.new(mode, (8, 8), value), "PNG", transparency=value)) == (255, 255, 255)
    deep = encode(PILImage.new("I;16", (8, 8), 32768), "PNG")
    assert abs(colour(with_chunk(deep, b"tRNS", struct.pack(">H", 7)))[0] - 128) <= 1


DAMAGES = st.lists(
    st.tuples(st.sampled_from(("flip", "cut", "insert", "zeros", "repeat")), st.floats(0, 1), st.binary(min_size=1, max_size=8)),
    min_size=1, max_size=4,
)  # fmt: skip


def damage(data: bytes, damages: list[tuple[str, float, bytes]]) -> bytes:
    for kind, share, rubbish in damages:
        at = int(share * len(data))
        match kind:
            case "flip":
                data = data[:at] + rubbish + data[at + len(rubbish) :]
            case "cut":
                data = data[:at]
            case "insert":
                data = data[:at] + rubbish + data[at:]
            case "zeros":
                data = data[:at] + bytes(len(data) - at)
            case "repeat":
                data = data + data[at:]
    return data


WHOLE = {kind: encode(scene(), kind, **options) for kind, options in CONTAINERS.items()}
WHOLE["PNG with a profile"] = encode(scene(), "PNG", icc_profile=matrix_profile("adobe-rgb"))
WHOLE["float TIFF"] = tiff(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8), 32, 3)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
@given(st.sampled_from(sorted(WHOLE)), DAMAGES)
def test_damage_never_comes_through(kind, damages):
    try:
        picture = open_picture(damage(WHOLE[kind], damages))
    except ValueError as error:
        said = str(error)
        assert said.startswith("The picture ") and "\n" not in said and not any(word in said for word in PILLOWS_WORDS), said
        assert said.endswith((".", "git lfs pull")), said
    else:
        assert picture.mode == "RGB" and picture.info == {} and 0 < picture.width * picture.height <= MAX_PIXELS
        assert max(picture.size) <= THINNEST * min(picture.size) and len(picture.tobytes()) == 3 * picture.width * picture.height
