"""Image decoding: what is converted, and what is rejected with which reason. Hostile files are made here or skipped."""

import csv
import struct

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, ImageCms, PngImagePlugin

from tests.helpers.images import encoded, noise, png_of_chunks
from tests.helpers.paths import SHARED
from thousandwords.data import image_decoding
from thousandwords.data.contact_sheet import make_contact_sheet
from thousandwords.data.image_decoding import InvalidImage, decode_image, decode_with_flags
from thousandwords.data.images import area_resize, decode_png, encode_png, fit_square, to_float, to_uint8

BAD_IMAGES = SHARED / "data/bad-images"
needs_bad_images = pytest.mark.skipif(not BAD_IMAGES.is_dir(), reason="../shared/data/bad-images is absent")


def smooth(height: int = 4, width: int = 4) -> np.ndarray:
    """An image (40, 48, 3) without sharp edges."""
    return np.array(Image.fromarray(noise(height, width)).resize((48, 40), Image.Resampling.BICUBIC))


def tiff(data: bytes, height: int = 32, width: int = 32, **tags: int) -> bytes:
    """A TIFF of one strip: `data`, described by the tags of a gray image or by those given, t258=12."""
    values = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    values |= {int(name[1:]): value for name, value in tags.items()}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, values[tag]) for tag in sorted(values))
    start = b"II*\0" + struct.pack("<I", 8 + len(data))
    return start + data + struct.pack("<H", len(values)) + entries + bytes(4)


def tiff_of_12_bits(values: np.ndarray) -> bytes:
    """(H, W) of 0 … 4095, two values in three bytes, as cameras and microscopes write them."""
    pairs = values.reshape(-1, 2).tolist()
    return tiff(b"".join((a << 12 | b).to_bytes(3, "big") for a, b in pairs), *values.shape, t258=12)


def bmp(compression: int = 0, bits: int = 24, masks: tuple[int, ...] = (), header: int = 40) -> bytes:
    """A BMP of 32 × 32 gray pixels."""
    pixels = b"\x80" * (32 * 32 * 8)
    start = 14 + header + 4 * len(masks)
    info = struct.pack("<IiiHHIIiiII", header, 32, 32, 1, bits, compression, len(pixels), 2835, 2835, 0, 0)
    info = info[:header] + struct.pack(f"<{len(masks)}I", *masks)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + info + pixels


def iso_media(brand: bytes, *compatible: bytes) -> bytes:
    """The start of a file of boxes, as HEIC, AVIF and videos have it."""
    brands = brand + bytes(4) + b"".join(compatible)
    return struct.pack(">I", 8 + len(brands)) + b"ftyp" + brands + bytes(64)


def jpeg_of(bits: int, layers: int) -> bytes:
    """A JPEG whose header names this precision and number of color planes."""
    data = bytearray(encoded(noise(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 4], data[frame + 9] = bits, layers
    return bytes(data)


def rejection_reason(data: bytes, **limits) -> str:
    with pytest.raises(InvalidImage) as caught:
        decode_image(data, **limits)
    assert len(caught.value.detail) <= 500
    return caught.value.reason


# ---- conversions


def test_floats_are_channels_first_and_between_zero_and_one_and_come_back_as_the_same_image():
    pixels = np.zeros((2, 4, 5, 3), np.uint8)
    pixels[1, 0, 2] = (255, 51, 0)
    floats = to_float(pixels)
    assert floats.shape == (2, 3, 4, 5) and floats.dtype == torch.float32 and floats.is_contiguous()
    assert floats[1, :, 0, 2].tolist() == pytest.approx([1.0, 0.2, 0.0])
    assert (to_uint8(to_float(noise()))[0] == noise()).all()


def test_floats_outside_the_range_are_clipped_and_rounded():
    floats = torch.tensor([-1.0, 0.4999 / 255, 2.0]).view(1, 3, 1, 1)
    assert to_uint8(floats).ravel().tolist() == [0, 0, 255]


def test_wrong_shapes_are_rejected_with_expected_and_found_shape():
    with pytest.raises(ValueError, match=r"needs uint8 .* or \(H, W, 3\), got float64 \(4, 5, 3\)"):
        to_float(np.zeros((4, 5, 3)))
    with pytest.raises(ValueError, match=r"needs \(B, 3, H, W\), got \(1, 4, 4, 3\)"):
        to_uint8(torch.zeros(1, 4, 4, 3))


def test_the_same_pixels_give_the_same_png():
    assert encode_png(noise()) == encode_png(noise().copy())
    assert (decode_png(encode_png(noise())) == noise()).all()


@pytest.mark.parametrize("turn", [lambda pixels: pixels, lambda pixels: pixels.transpose(1, 0, 2)])
def test_the_square_is_cut_from_the_center(turn):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 4:12] = 200
    square = fit_square(turn(pixels), 4)
    assert (square == 200).all() and square.shape == (4, 4, 3)


def test_shrinking_averages_instead_of_skipping():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(fit_square(stripes, 8)[:, 1:-1].astype(int) - 127).max() <= 4


@pytest.mark.paper("tokenizer: augmentation")
@pytest.mark.parametrize(("height", "width"), [(7, 11), (37, 5), (36, 47), (37, 48), (1, 1)])
def test_partly_covered_pixels_agree_with_a_sum_over_all_pixels(height, width):
    pixels = noise(37, 48)
    expected = np.einsum("hy,wx,yxc->hwc", coverage(height, 37), coverage(width, 48), pixels)
    assert np.abs(area_resize(pixels, height, width) - expected).max() < 0.5001


def coverage(size: int, count: int) -> np.ndarray:
    """(size, count): how much of each new pixel each old one covers."""
    ends, steps = np.arange(size + 1) * count / size, np.arange(count)
    overlap = np.minimum(ends[1:, None], steps + 1) - np.maximum(ends[:-1, None], steps)
    return np.clip(overlap, 0, None) * size / count


def test_a_contact_sheet_has_a_cell_for_each_image():
    images = np.stack([np.full((10, 10, 3), value, np.uint8) for value in (10, 20, 30)])
    sheet = make_contact_sheet(images, columns=2, pad=2)
    assert sheet.shape == (2 + 2 * 12, 2 + 2 * 12, 3)
    assert [int(sheet[5, 5, 0]), int(sheet[5, 17, 0]), int(sheet[17, 5, 0])] == [10, 20, 30]
    assert (sheet[15:, 15:] == 255).all()


def test_labels_are_under_their_images_and_stay_in_their_column():
    images = np.full((2, 60, 60, 3), 255, np.uint8)
    labels = ["", "a very long caption with averyveryverylongword in it 0.95"]
    inked = np.argwhere(make_contact_sheet(images, columns=2, pad=4, labels=labels).min(axis=2) < 128)
    assert inked[:, 0].min() >= 64 and 68 <= inked[:, 1].min() and inked[:, 1].max() < 128


# ---- converted


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG"])
def test_every_accepted_format_is_read_by_its_content(format):
    pixels = decode_image(encoded(smooth(), format, **({"lossless": True} if format == "WEBP" else {})))
    assert pixels.shape == (40, 48, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - smooth()).mean() < {"JPEG": 8, "GIF": 12}.get(format, 1e-9)


def test_transparent_pixels_take_the_background_color():
    image = Image.new("RGBA", (40, 40), (200, 0, 0, 0))
    image.paste((10, 20, 30, 255), (0, 0, 40, 20))
    pixels = decode_image(encoded(image))
    assert pixels[0, 0].tolist() == [10, 20, 30] and pixels[39, 0].tolist() == [255, 255, 255]
    assert decode_image(encoded(image), background=(0, 128, 0))[39, 0].tolist() == [0, 128, 0]


def test_half_transparent_pixels_are_mixed_with_the_background():
    image = Image.new("LA", (32, 32), (0, 128))
    assert abs(int(decode_image(encoded(image))[0, 0, 0]) - 127) <= 1


@pytest.mark.parametrize("transparency", [0, bytes([0, 255])])
def test_transparent_palette_entries_take_the_background_color(transparency):
    image = Image.new("P", (32, 32), 0)
    image.putpalette([9, 9, 9, 50, 60, 70])
    image.paste(1, (0, 0, 32, 16))
    pixels = decode_image(encoded(image, transparency=transparency))
    assert pixels[0, 0].tolist() == [50, 60, 70] and pixels[31, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("white", "kind", "format"),
    [(65535, np.uint16, "PNG"), (65535, np.uint16, "TIFF"), (4095, np.uint16, "TIFF of 12 bits"),
     (65535, np.int32, "TIFF"), (1, np.float32, "TIFF"), (255, np.float32, "TIFF")],
)  # fmt: skip
def test_grays_of_more_than_8_bits_are_scaled_by_their_range(white, kind, format):
    ramp = np.linspace(0, white, 64 * 64).reshape(64, 64).astype(kind)
    data = tiff_of_12_bits(ramp) if white == 4095 else encoded(Image.fromarray(ramp), format)
    assert np.abs(decode_image(data)[:, :, 1] - ramp / white * 255).max() <= 0.51


@pytest.mark.parametrize("odd", [-1.0, np.nan, 1e9])
def test_float_images_in_an_unknown_range_are_rejected(odd):
    values = np.full((32, 32), odd, np.float32)
    assert rejection_reason(encoded(Image.fromarray(values), "TIFF")) == "bad_mode"


@pytest.mark.parametrize("coding", ["CMYK", "YCCK"])
def test_both_codings_of_cmyk_in_a_jpeg_give_the_colors_of_the_reference(coding):
    inks = smooth(5, 6)  # cyan, magenta, yellow
    black = np.linspace(0, 120, 48).astype(np.uint8)[None].repeat(40, 0)
    stored = inks if coding == "CMYK" else 255 - np.array(Image.fromarray(inks).convert("YCbCr"))
    planes = [Image.fromarray(plane) for plane in (*stored.transpose(2, 0, 1), black)]
    data = bytearray(encoded(Image.merge("CMYK", planes), "JPEG", quality=100, subsampling=0))
    data[data.index(b"Adobe\0") + 11] = {"CMYK": 0, "YCCK": 2}[coding]
    reference = (255.0 - inks) * (255.0 - black[:, :, None]) / 255
    assert np.abs(decode_image(bytes(data)) - reference).mean() <= 3


@pytest.mark.parametrize("mode", ["1", "L"])
def test_images_without_color_become_gray(mode):
    assert (decode_image(encoded(Image.new(mode, (32, 32), 255))) == 255).all()


TURNS = (  # how the camera was held, from orientation 1 on
    lambda p: p, np.fliplr, lambda p: np.rot90(p, 2), np.flipud, lambda p: p.transpose(1, 0, 2),
    np.rot90, lambda p: np.rot90(p.transpose(1, 0, 2), 2), lambda p: np.rot90(p, 3),
)  # fmt: skip


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "JPEG"])
@pytest.mark.parametrize(("orientation", "turn"), [*enumerate(TURNS, start=1), (99, TURNS[0])])
def test_exif_orientation_is_applied(format, orientation, turn):
    upright = smooth()
    stored = np.ascontiguousarray(turn(upright))
    exif = Image.Exif()
    exif[274] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(format, {})
    pixels = decode_image(encoded(stored, format, exif=exif, **options))
    assert pixels.shape == (40, 48, 3)
    assert np.abs(pixels.astype(int) - upright).mean() <= (3 if format == "JPEG" else 0)


def test_broken_exif_is_ignored():
    data = encoded(noise(), exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff broken")
    assert (decode_image(data) == noise()).all()


@pytest.mark.parametrize("strip", [1, 48 * 7, 10**6])
def test_flattening_in_strips_gives_the_same_pixels(monkeypatch, strip):
    image = Image.fromarray(noise())
    clear = image.convert("RGBA")
    clear.putalpha(Image.fromarray(noise(seed=1)[:, :, 0]))
    palette = image.quantize(8)
    kinds = [encoded(image), encoded(clear), encoded(clear.convert("LA")), encoded(palette, transparency=3)]
    kinds += [encoded(image.convert(mode), "TIFF") for mode in ("CMYK", "1")]
    kinds.append(encoded(clear, "WEBP", lossless=True))
    whole = [decode_image(data, background=(0, 128, 0)) for data in kinds]
    monkeypatch.setattr(image_decoding, "STRIP_PIXELS", strip)
    for data, pixels in zip(kinds, whole, strict=True):
        assert (decode_image(data, background=(0, 128, 0)) == pixels).all()


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_flagged_and_gives_its_first_frame(format):
    frames = [Image.fromarray(noise(seed=seed)).quantize(64).convert("RGB") for seed in (0, 1)]
    options = {"lossless": True} if format == "WEBP" else {}
    moving = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    image, still = decode_with_flags(moving), decode_with_flags(encoded(frames[0], format, **options))
    assert (image.format, image.flags, still.flags) == (format, ("animated",), ())
    assert (image.pixels == still.pixels).all()
    if format == "GIF":  # damage after the first frame is ignored
        assert (decode_with_flags(moving[:-500]).pixels == image.pixels).all()


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_only_the_pixels_of_an_image_with_an_archive_after_it_are_used(format):
    data = encoded(noise(), format)
    assert (decode_image(data + b"PK\x03\x04 and so on") == decode_image(data)).all()


def test_a_png_without_its_end_chunk_is_accepted():
    data = encoded(noise())
    assert data[-8:-4] == b"IEND" and (decode_image(data[:-12]) == noise()).all()
    assert (decode_image(data[:-1] + b"x") == noise()).all()  # or with a wrong checksum of it


def test_flipped_bytes_in_the_pixels_of_a_jpeg_are_not_noticed():
    data = bytearray(encoded(noise(), "JPEG"))
    data[-200] ^= 4  # a JPEG has no checksum
    assert decode_image(bytes(data)).shape == (40, 48, 3)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_bad_color_profile_changes_nothing(format):
    plain, bad = encoded(noise(), format), encoded(noise(), format, icc_profile=b"no profile at all" * 20)
    assert (decode_image(bad) == decode_image(plain)).all()
    assert decode_with_flags(bad).flags == ("bad_icc_profile",) and decode_with_flags(plain).flags == ()


@pytest.mark.parametrize(
    ("end", "replaced"),  # of the profile up to `end`, whose last bytes are replaced
    [(-1, b""), (100, b""), (40, b"ASCP"), (132, b"\xff\xff\xff\xff"), (140, b"\x7f\xff\xff\xff")],
)
def test_a_profile_is_bad_if_its_length_signature_or_tags_are(end, replaced):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    damaged = profile[:end]
    if replaced:
        damaged = profile[: end - 4] + replaced + profile[end:]
    assert decode_with_flags(encoded(noise(), icc_profile=profile)).flags == ()
    assert decode_with_flags(encoded(noise(), icc_profile=damaged)).flags == ("bad_icc_profile",)


def test_no_decoder_of_another_format_is_called(monkeypatch):
    monkeypatch.setattr(
        EpsImagePlugin.EpsImageFile, "_open", failing(AssertionError("it called Ghostscript"))
    )
    assert rejection_reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n") == "bad_format"


# ---- rejected


BAD_BYTES = [
    (b"", "empty_file"),
    (b"<html><body>404</body></html>", "not_an_image"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
    (b"\xff", "not_an_image"),
    (bytes(range(100, 200)), "not_an_image"),
    (encoded(noise(), "JPEG")[:20], "not_an_image"),
    (png_of_chunks(0, 0, b"IDAT"), "not_an_image"),
    (png_of_chunks(20_000, 20_000, b"IDAT"), "too_many_pixels"),
    (png_of_chunks(2**31 - 1, 2**31 - 1, b"IDAT"), "too_many_pixels"),
    (png_of_chunks(12_000, 12_000, b"IDAT"), "too_many_pixels"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", "bad_format"),
    (b"8BPS\x00\x01" + bytes(100), "bad_format"),
    (b"SIMPLE  =                    T" + b" " * 100, "bad_format"),
    (b"icns" + bytes(100), "bad_format"),
    (b"%PDF-1.7\n" + bytes(100), "bad_format"),
    (encoded(noise(), "PPM"), "bad_format"),
    (encoded(noise(), "ICO"), "bad_format"),
]


RGB = {"t262": 2, "t277": 3}
DAMAGED = [  # which is not mistaken for another mode
    (tiff(bytes(32 * 32 * 12), t258=32, t339=3, **RGB)[:-20], "not_an_image"),  # without its last tags
    (tiff(bytes(100), t258=32, t339=3, t279=12 * 32 * 32, **RGB), "not_an_image"),  # without its pixels
    (tiff(bytes(100), t277=303169682), "not_an_image"),
    (tiff(bytes(32 * 32 * 3), t259=50001, t279=10**6, **RGB), "corrupt_data"),
    (bmp(0, 66), "corrupt_data"),
    (bmp(77, 24), "corrupt_data"),
    (iso_media(b"isom", b"mp42"), "not_an_image"),
    (jpeg_of(40, 3), "not_an_image"),
]


@pytest.mark.parametrize(("data", "reason"), BAD_BYTES + DAMAGED)
def test_bytes_that_are_not_a_supported_image_are_rejected_with_a_reason(data, reason):
    assert rejection_reason(data) == reason


SIGNATURES = [  # of other formats; the bytes after them do not matter
    ("HEIC", iso_media(b"heic", b"mif1", b"heic", b"miaf")),
    ("HEIC", iso_media(b"mif1", b"heic")),
    ("HEIC", b"\xff\xff\xff\xffftypheic"),
    ("AVIF", iso_media(b"avif", b"mif1")),
    ("AVIF", iso_media(b"mif1", b"mif1", b"avif")),
    ("CR3", iso_media(b"crx ", b"isom")),
    ("JPEG XL", b"\xff\x0a"), ("JPEG XL", b"\0\0\0\x0cJXL \r\n\x87\n"),
    ("JPEG2000", b"\0\0\0\x0cjP  \r\n\x87\n"), ("JPEG2000", b"\xff\x4f\xff\x51"),
    ("JPEG-LS", b"\xff\xd8\xff\xf7"), ("JPEG XR", b"II\xbc\x01"), ("PSD", b"8BPS\0\1"), ("XCF", b"gimp xcf v011"),
    ("OpenEXR", b"v/1\x01"), ("Radiance HDR", b"#?RADIANCE\n"), ("DjVu", b"AT&TFORM"), ("BPG", b"BPG\xfb"),
    ("MNG", b"\x8aMNG\r\n\x1a\n"), ("DICOM", bytes(128) + b"DICM"), ("RAF", b"FUJIFILMCCD-RAW "),
    ("ORF", b"IIRO"), ("RW2", b"IIU\0"), ("X3F", b"FOVb"), ("CR2", b"II*\0\x10\0\0\0CR\x02\0"),
    ("DNG", tiff(noise(32, 32)[:, :, 0].tobytes(), t50706=0x00000401)),
    ("DNG", tiff(bytes(32 * 32 * 2), t258=16, t262=32803, t50706=0x00000401)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "start"), SIGNATURES)
def test_another_image_format_is_rejected_by_its_name(name, start):
    with pytest.raises(InvalidImage, match=f"^bad_format: looks like {name}; accepted are JPEG, PNG"):
        decode_image(start + bytes(64))


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (tiff(bytes(32 * 32 * 12), t258=32, t339=3, **RGB), "TIFF.*32 bits"),
        (tiff(bytes(32 * 32 * 6), t258=16, t339=2, **RGB), "TIFF.*16 bits"),
        (tiff(bytes(32 * 32 * 8), t258=64), "TIFF.*64 bits"),
        (tiff(bytes(32 * 32 * 8), t258=64, t339=6), "TIFF.*64 bits"),
        (tiff(bytes(32 * 32 * 12), t277=12), "TIFF.*12 samples"),
        (tiff(bytes(32 * 32 * 3), t259=50001, **RGB), "TIFF.*compression.*webp"),
        (tiff(bytes(32 * 32 * 3), t259=34887, **RGB), "TIFF.*compression 34887"),
        (bmp(3, 16, (0xF00, 0xF0, 0xF)), "BMP bitfields"),
        (bmp(0, 2), r"BMP pixel depth \(2\)"),
        (bmp(0, 64), r"BMP pixel depth \(64\)"),
        (bmp(5, 24), r"BMP compression \(5\)"),
        (jpeg_of(12, 3), "12-bit"),
        (jpeg_of(8, 2), "2-layer"),
    ],
)
def test_an_image_of_an_unsupported_mode_or_compression_is_a_bad_mode(data, detail):
    with pytest.raises(InvalidImage, match=f"^bad_mode: .*{detail}.* not supported"):
        decode_image(data)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_an_image_truncated_anywhere_is_rejected_or_complete(format):
    data = encoded(noise(), format)
    whole = decode_image(data)
    for length in [*range(1, len(data), 97), len(data) - 2, len(data) - 1]:
        try:
            assert (decode_image(data[:length]) == whole).all()  # only an end mark was lost
        except InvalidImage as error:
            assert error.reason in ("truncated", "not_an_image")


@pytest.mark.parametrize("chunk", [b"IHDR", b"eXIf", b"IDAT"])
def test_a_wrong_checksum_of_any_chunk_but_the_last_is_rejected(chunk):
    data = bytearray(encoded(noise(), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"))
    start = data.index(chunk)
    data[start + 4 + int.from_bytes(data[start - 4 : start]) + 3] ^= 1
    assert rejection_reason(bytes(data)) == "corrupt_data"


def test_a_flipped_bit_anywhere_in_the_pixels_of_a_png_is_noticed():
    data = encoded(noise(8, 8))
    start = data.index(b"IDAT")
    for position in range(start + 4, len(data) - 12):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            assert rejection_reason(bytes(damaged)) == "corrupt_data"


def test_a_text_bomb_is_rejected():
    notes = PngImagePlugin.PngInfo()
    notes.add_text("comment", "x" * 20_000_000, zip=True)
    data = encoded(noise(), pnginfo=notes)
    assert len(data) < 30_000
    assert rejection_reason(data) == "corrupt_data"


def test_files_over_the_limit_are_rejected_unread(monkeypatch):
    monkeypatch.setattr(image_decoding, "MAX_BYTES", 1000)
    assert rejection_reason(encoded(noise())) == "too_many_bytes"


@pytest.mark.paper("evaluation: data filter")
def test_shapes_excluded_by_settings_are_rejected_from_the_header():
    assert rejection_reason(encoded(noise(40, 31)), min_side=32) == "too_small"
    assert rejection_reason(encoded(noise(32, 97)), max_aspect=3) == "bad_aspect"
    assert rejection_reason(encoded(noise(5000, 1)), min_side=32) == "too_small"
    assert decode_image(encoded(noise(32, 96)), min_side=32, max_aspect=3).shape == (32, 96, 3)


def failing(error: BaseException):
    """What replaces a method that should raise this error."""

    def load(*_: object) -> None:
        raise error

    return load


@pytest.mark.parametrize("error", [SyntaxError("x"), ValueError("x"), KeyError("x"), RuntimeError("x")])
def test_any_error_of_a_decoder_is_a_rejection(monkeypatch, error):
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", failing(error))
    assert rejection_reason(encoded(noise())) == "corrupt_data"


def test_a_memory_error_is_not_blamed_on_the_bytes(monkeypatch):
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", failing(MemoryError()))
    with pytest.raises(MemoryError):
        decode_image(encoded(noise()))


EXPECTED_REASONS = {
    "too_many_pixels": """
        pillow/decompression_bomb.gif sharp/65536-uint32-limit.png sharp/giant-image.jpg
        pillow/bmp/b/reallybig.bmp pillow/bmp/b/badwidth.bmp image-rs/bad/bmp/Bad_height.bmp
    """,
    "bad_format": """
        pillow/decompression_bomb.ico pillow/oom-8ed3316a4109213ca96fb8a256a0bfefdece1461.icns
        pillow/timeout-c60a3d7314213624607bfb3e38d551a8b24a7435.dds pillow/hopper_16bit.pgm
    """,
    "truncated": """
        pillow/truncated_jpeg.jpg pillow/truncated_image.png sharp/truncated.jpg sharp/truncated.png
        pillow/truncated_end_chunk.png pillow/bmp/b/shortfile.bmp sharp/corrupt-header.jpg
    """,
    "not_an_image": """
        pillow/oom-225817ca0f8c663be7ab4b9e717b02c661e66834.tif pillow/broken.png
        pillow/pngtest_bad.png.bin pillow/zero_width.gif sharp/invalid-illuminant.icc
    """,
    "corrupt_data": """
        pillow/broken_data_stream.png pillow/unknown_compression_method.png
        pillow/bmp/b/badpalettesize.bmp image-rs/regression/jpg/oss-fuzz-36829.jpeg
        pillow/crash-2020-10-test.tif pillow/crash-0c7e0e8e11ce787078f00b5b0ca409a167f070e0.tif
        pillow/bmp/q/pal8oversizepal.bmp pillow/apng/syntax_num_frames_zero.png
    """,
}


@needs_bad_images
def test_every_hostile_file_is_decoded_or_rejected_with_the_right_reason():
    expected = {name: reason for reason, names in EXPECTED_REASONS.items() for name in names.split()}
    reasons = {}
    with open(BAD_IMAGES / "CURATED.tsv", newline="") as table:
        for row in csv.DictReader(table, delimiter="\t"):
            try:
                assert decode_image((BAD_IMAGES / row["file"]).read_bytes()).dtype == np.uint8
            except InvalidImage as error:
                reasons[row["file"]] = error.reason
    assert reasons == expected


@needs_bad_images
@pytest.mark.parametrize(
    ("name", "pixel", "color"),
    [
        ("sharp/full-transparent.png", (150, 150), (255, 255, 255)),
        ("sharp/fogra-0-100-100-0.tif", (500, 500), (254, 0, 0)),
        ("sharp/Flag_of_the_Netherlands-16bit.png", (300, 450), (255, 255, 255)),
        ("pillow/p_trns_single.png", (32, 32), (255, 255, 255)),
    ],
)
def test_unusual_valid_files_have_the_right_colors(name, pixel, color):
    value = decode_image((BAD_IMAGES / name).read_bytes())[pixel].astype(int)
    assert np.abs(value - color).max() <= 3
