"""Image files of every kind have the pixel values computed in NumPy."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from diffguide.datasets.decoding import (
    Unreadable,
    is_image,
    read_header,
    read_image,
    read_square,
    readable_suffixes,
    resize_square,
)
from diffguide.datasets.ranges import WhiteLevels, find_whites

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 9), dtype=np.uint8)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (6, 9), dtype=np.uint8)
ALPHA[0, :3] = 0, 128, 255
DEEP = RNG.integers(0, 65536, (6, 9), dtype=np.uint16)
DEEP[0, :4] = 0, 255, 32768, 65535
INDEX = RNG.integers(0, 5, (6, 9), dtype=np.uint8)
PALETTE = RNG.integers(0, 256, (5, 3), dtype=np.uint8)


def over_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    alpha = alpha.astype(float)[..., None] / 255
    return alpha * pixels + (1 - alpha) * 255


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey.astype(float)[..., None], 3, axis=2)


def luma(rgb: np.ndarray) -> np.ndarray:
    """ITU-R 601."""
    return rgb @ np.array([0.299, 0.587, 0.114])


def png(bit_depth: int, colour: int, pixels: np.ndarray, transparent: bytes = b"") -> bytes:
    """A PNG written by hand: Pillow writes no 16-bit RGB and no grey with a transparent value of 16 bits."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(f">u{bit_depth // 8}").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour, 0, 0, 0)
    transparency = chunk(b"tRNS", transparent) if transparent else b""
    parts = chunk(b"IHDR", header), transparency, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def palette(**save) -> Image.Image:
    image = Image.fromarray(INDEX, "P")
    image.putpalette(PALETTE.tobytes())
    return image


def cmyk() -> tuple[Image.Image, np.ndarray]:
    ink = RNG.integers(0, 256, (6, 9, 4), dtype=np.uint8)
    rest = 255 - ink.astype(float)
    return Image.fromarray(ink, "CMYK"), rest[..., :3] * rest[..., 3:] / 255


def write(kind: str, folder: Path) -> tuple[Path, np.ndarray]:
    """A file of a kind, and its expected pixels [6, 9, 3] in 0..255."""
    path = folder / kind
    rgba = Image.fromarray(np.dstack([RGB, ALPHA]), "RGBA")
    if kind == "bits.png":
        Image.fromarray(GREY).point(lambda value: 255 * (value > 127), "1").save(path)
        return path, three(255 * (GREY > 127))
    if kind in ("grey.png", "grey.bmp", "grey.tif", "grey.pgm", "grey.gif"):
        Image.fromarray(GREY).save(path)
        return path, three(GREY)
    if kind == "grey_transparent.png":
        path.write_bytes(png(8, 0, GREY, struct.pack(">H", GREY[2, 2])))
        return path, three(np.where(GREY == GREY[2, 2], 255, GREY))
    if kind in ("grey_alpha.png", "grey_alpha.tiff"):
        Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(ALPHA))).save(path)
        return path, over_white(three(GREY), ALPHA)
    if kind in ("rgb.png", "rgb.bmp", "rgb.ppm", "rgb.TIFF", "rgb.webp"):
        Image.fromarray(RGB).save(path, **({"lossless": True} if kind == "rgb.webp" else {}))
        return path, RGB.astype(float)
    if kind in ("rgba.png", "rgba.webp", "rgba.tif"):
        rgba.save(path, **({"lossless": True, "exact": True} if kind == "rgba.webp" else {}))
        return path, over_white(RGB, ALPHA)
    if kind in ("palette.png", "palette.gif", "palette.bmp"):
        palette().save(path)
        return path, PALETTE[INDEX].astype(float)
    if kind in ("palette_one.png", "palette_one.gif"):
        palette().save(path, transparency=3)
        return path, np.where((INDEX == 3)[..., None], 255.0, PALETTE[INDEX])
    if kind == "palette_alpha.png":
        alphas = np.array([0, 60, 120, 180, 255], dtype=np.uint8)
        palette().save(path, transparency=alphas.tobytes())
        return path, over_white(PALETTE[INDEX], alphas[INDEX])
    if kind in ("deep.png", "deep.tif"):
        Image.fromarray(DEEP).save(path)
        return path, three(DEEP / 65535 * 255)
    if kind == "deep_big_endian.tif":
        Image.frombytes("I;16B", (9, 6), DEEP.astype(">u2").tobytes()).save(path)
        return path, three(DEEP / 65535 * 255)
    if kind == "deep.pgm":
        path.write_bytes(b"P5 9 6 65535\n" + DEEP.astype(">u2").tobytes())
        return path, three(DEEP / 65535 * 255)
    if kind == "deep_transparent.png":
        path.write_bytes(png(16, 0, DEEP, struct.pack(">H", DEEP[3, 3])))
        return path, three(np.where(DEEP == DEEP[3, 3], 65535, DEEP) / 65535 * 255)
    if kind == "deep_rgb.png":
        deep = np.dstack([DEEP, DEEP[::-1], DEEP[:, ::-1]])
        path.write_bytes(png(16, 2, deep))
        return path, deep / 65535 * 255
    assert kind == "cmyk.tif"
    image, expected = cmyk()
    image.save(path)
    return path, expected


EXACT = ["bits.png", "grey.png", "grey.bmp", "grey.tif", "grey.pgm", "grey.gif", "grey_transparent.png", "rgb.png",
         "rgb.bmp", "rgb.ppm", "rgb.TIFF", "rgb.webp", "palette.png", "palette.gif", "palette.bmp", "palette_one.png",
         "palette_one.gif", "deep.png", "deep.tif", "deep_big_endian.tif", "deep.pgm", "deep_transparent.png"]  # fmt: skip
CLOSE = ["grey_alpha.png", "grey_alpha.tiff", "rgba.png", "rgba.webp", "rgba.tif", "palette_alpha.png", "deep_rgb.png",
         "cmyk.tif"]  # fmt: skip


@pytest.mark.parametrize("kind", EXACT + CLOSE)
def test_files_of_every_kind_have_the_right_pixels(kind, tmp_path):
    path, expected = write(kind, tmp_path)
    assert is_image(path)
    header = read_header(path)
    assert (header.width, header.height) == (9, 6)
    rgb, grey = (np.asarray(read_image(path, channels)).astype(float) for channels in (3, 1))
    assert rgb.shape == (6, 9, 3) and grey.shape == (6, 9)
    slack = 0.5 if kind in EXACT else 1.0  # half a level for rounding; Pillow blends in integers
    assert np.abs(rgb - expected).max() <= slack + 1e-9
    assert np.abs(grey - luma(expected)).max() <= slack + 0.51


UPRIGHT = {  # EXIF 2.3, tag 274: the operation that turns the stored image upright
    1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: lambda a: np.rot90(a, 1),
}  # fmt: skip


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_exif_orientation_is_applied(orientation, suffix, tmp_path):
    blocks = np.kron(RNG.integers(0, 256, (2, 3, 1)), np.ones((16, 16, 3))).astype(np.uint8)  # survive JPEG
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"image{suffix}"
    options = {".jpg": {"quality": 100}, ".webp": {"lossless": True}}.get(suffix, {})
    Image.fromarray(blocks).save(path, exif=exif, **options)
    found = np.asarray(read_image(path, 3)).astype(int)
    expected = UPRIGHT[orientation](blocks)
    assert found.shape == expected.shape and np.abs(found - expected).max() <= (2 if suffix == ".jpg" else 0)


def lanczos(pixels: np.ndarray, side: int) -> np.ndarray:
    """Rows resized with the kernel sinc(x) sinc(x / 3), stretched by the factor of reduction and normalised."""
    length = pixels.shape[0]
    scale = max(length / side, 1.0)
    centres = (np.arange(side) + 0.5) * length / side
    x = (np.arange(length) + 0.5 - centres[:, None]) / scale
    weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
    return np.tensordot(weights / weights.sum(1, keepdims=True), pixels, axes=1)


@pytest.mark.parametrize("side", [7, 12, 20])
def test_resizing_is_lanczos(side):
    pixels = RNG.integers(60, 190, (12, 12), dtype=np.uint8)  # no clipping between the two passes
    expected = lanczos(lanczos(pixels.astype(float), side).T, side).T
    found = np.asarray(resize_square(Image.fromarray(pixels), side, stretch=False))
    assert np.abs(found - expected.clip(0, 255)).max() <= 1.1  # rounded twice


def test_resizing_is_antialiased():
    board = (np.indices((250, 250)).sum(0) % 2 * 255).astype(np.uint8)
    small = np.asarray(resize_square(Image.fromarray(board), 24, stretch=False)).astype(int)
    assert np.abs(small - 127.5).max() <= 8  # any single pixel is 127.5 away


def test_the_central_square_is_cropped_or_all_is_distorted():
    image = Image.fromarray(RGB)  # 6 rows, 9 columns
    np.testing.assert_array_equal(np.asarray(resize_square(image, 6, stretch=False)), RGB[:, 1:7])
    np.testing.assert_array_equal(np.asarray(resize_square(image.transpose(Image.Transpose.TRANSPOSE), 6, False)),
                                  RGB.transpose(1, 0, 2)[1:7])  # fmt: skip
    wide = np.repeat(RNG.integers(60, 190, (6, 1), dtype=np.uint8), 12, axis=1)
    wide[:, 6:] = 255 - wide[:, 6:]
    squeezed = np.asarray(resize_square(Image.fromarray(wide), 6, stretch=True))
    np.testing.assert_array_equal(squeezed[:, [0, 5]], wide[:, [0, 11]])  # both borders are kept
    assert squeezed.shape == (6, 6)


def test_squares_are_bytes_with_channels_first(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    x = read_square(tmp_path / "a.png", 3, 6, stretch=False)
    assert x.shape == (3, 6, 6) and x.is_contiguous()
    np.testing.assert_array_equal(x.numpy(), RGB[:, 1:7].transpose(2, 0, 1))
    assert read_square(tmp_path / "a.png", 1, 4, stretch=True).shape == (1, 4, 4)


def test_large_jpegs_are_decoded_at_reduced_size_with_the_same_result(tmp_path):
    waves = np.sin(np.linspace(0, 9, 800))[:, None] * np.cos(np.linspace(0, 14, 1000))
    pixels = (127.5 + 127 * np.dstack([waves, -waves, waves**2])).astype(np.uint8)
    path = tmp_path / "large.jpg"
    Image.fromarray(pixels).save(path, quality=95)
    halves = {None: (1000, 800), 200: (1000, 800), 100: (500, 400), 50: (250, 200), 25: (125, 100)}
    assert {side: read_image(path, 3, side).size for side in halves} == halves
    for side in (25, 90):
        small = read_square(path, 3, side, stretch=False).numpy().transpose(1, 2, 0)
        whole = lanczos(lanczos(pixels[:, 100:900].astype(float), side).transpose(1, 0, 2), side).transpose(1, 0, 2)
        assert np.abs(small - whole).max() <= 2.5


def broken(kind: str, path: Path) -> None:
    noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    if kind == "truncated.jpg":
        noise.save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "broken.png":
        noise.save(path)
        path.write_bytes(path.read_bytes()[:60] + bytes(200) + path.read_bytes()[260:])
    elif kind == "float.tif":
        Image.fromarray(RNG.normal(size=(4, 4)).astype(np.float32)).save(path)
    elif kind == "wide.tif":
        Image.fromarray(np.array([[0, 70000]], dtype=np.int32)).save(path)
    elif kind == "between.tif":
        Image.fromarray(np.array([[0.5, 1.3]], dtype=np.float32)).save(path)
    elif kind == "nan.tif":
        Image.fromarray(np.array([[0.5, np.nan]], dtype=np.float32)).save(path)
    elif kind == "page.png":
        Image.fromarray(RGB).save(path, format="EPS")
    elif kind == "gone.png":
        path.symlink_to(path.parent / "nowhere.png")
    else:
        path.write_bytes(b"" if kind == "empty.gif" else b"The quick brown fox")


REASONS = {
    "truncated.jpg": "truncated", "broken.png": "broken", "empty.gif": "no image that Pillow can identify",
    "text.png": "no image that Pillow can identify", "float.tif": "grey values outside 0..65535", "gone.png": "No such file",
    "wide.tif": "grey values outside 0..65535", "between.tif": "floating-point values up to 1.3", "nan.tif": "grey values",
    "page.png": "no image that Pillow can identify",
}  # fmt: skip


@pytest.mark.parametrize("kind", REASONS)
def test_files_that_are_no_images_are_unreadable_with_a_reason(kind, tmp_path):
    broken(kind, tmp_path / kind)
    with pytest.raises(Unreadable, match=REASONS[kind]) as raised:
        read_image(tmp_path / kind, 3)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["empty.gif", "text.png", "page.png", "gone.png"])
def test_headers_of_files_that_are_no_images_are_unreadable(kind, tmp_path):
    broken(kind, tmp_path / kind)
    with pytest.raises(Unreadable, match=REASONS[kind]):
        read_header(tmp_path / kind)


def test_decompression_bombs_are_unreadable(tmp_path, monkeypatch):
    Image.fromarray(RGB).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # 54 pixels are more than twice that
    for read in (read_header, lambda path: read_image(path, 3)):
        with pytest.raises(Unreadable, match="decompression bomb"):
            read(tmp_path / "bomb.png")


def test_images_are_found_by_suffix():
    """Pillow's list without films, documents for other programs, and formats of which it reads only the header."""
    assert all(is_image(Path(name)) for name in ("a.PNG", "b.jpeg", "c d.Jpg", "e.webp", "f.pgm", "g.tar.gif", "h.ico"))
    names = (
        "a.txt",
        "png",
        "b.pdf",
        "c.npy",
        "d.png.json",
        "e.eps",
        "f.ps",
        "g.mpg",
        "h.wmf",
        "i.h5",
        "j.grib",
        "k.svg",
    )
    assert not any(is_image(Path(name)) for name in names)
    assert is_image(Path("a.PNG"), [".png"]) and not is_image(Path("a.gif"), [".png"])


WRITTEN = {  # suffix: arguments of Pillow to write the file, and the tolerance of a pixel
    ".jfif": ("JPEG", dict(quality=100, subsampling=0), 6), ".jpe": ("JPEG", dict(quality=100, subsampling=0), 6),
    ".mpo": ("MPO", dict(quality=100, subsampling=0), 6), ".apng": ("PNG", dict(save_all=True), 0),
    ".pnm": ("PPM", {}, 0), ".ico": ("ICO", dict(sizes=[(9, 6)]), 0), ".tga": ("TGA", {}, 0), ".dib": ("DIB", {}, 0),
    ".sgi": ("SGI", {}, 0), ".pcx": ("PCX", {}, 0), ".dds": ("DDS", {}, 0),
}  # fmt: skip
WRITTEN |= {".jp2": ("JPEG2000", dict(irreversible=False, num_resolutions=1), 0)} if features.check("jpg_2000") else {}
WRITTEN |= {".avif": ("AVIF", dict(quality=100, subsampling="4:4:4"), 8)} if ".avif" in readable_suffixes() else {}
WRITTEN |= {".qoi": ("QOI", {}, 0)} if "QOI" in Image.SAVE else {}


@pytest.mark.parametrize("suffix", sorted(WRITTEN))
def test_every_format_that_pillow_decodes_is_read(suffix, tmp_path):
    kind, save, slack = WRITTEN[suffix]
    path = tmp_path / f"a{suffix.upper()}"
    picture = Image.fromarray(np.kron(RGB[:3, :4] // 2 + 60, np.ones((2, 2, 1), np.uint8))[:, :9])
    picture = picture.resize((9, 6), Image.Resampling.NEAREST)
    picture.save(path, format=kind, **save)
    assert is_image(path) and read_header(path)[1:] == (9, 6)
    found = np.asarray(read_image(path, 3)).astype(int)
    assert np.abs(found - np.asarray(picture).astype(int)).max() <= slack


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    for name in ("a.apng", "a.gif", "a.webp"):
        frames[0].save(
            tmp_path / name, save_all=True, append_images=frames[1:], **({"lossless": True} if "w" in name else {})
        )
        assert np.asarray(read_image(tmp_path / name, 3))[0, 0].tolist() == [255, 0, 0]


VALUES = np.array([[0, 51, 255], [102, 204, 153]])


@pytest.mark.parametrize("u, white", [
    (VALUES.astype(np.int32), 255), (VALUES.astype(np.uint16), 255), (VALUES.astype(np.float32), 255),
    ((VALUES * 257).astype(np.int32), 65535), ((VALUES * 257).astype(np.uint16), 65535),
    ((VALUES * 257).astype(np.float32), 65535), ((VALUES / 255).astype(np.float32), 1),
    ((VALUES > 102).astype(np.int32), 1), ((VALUES > 102).astype(np.uint16), 1),
])  # fmt: skip
def test_white_is_the_smallest_level_above_all_values(u, white, tmp_path):
    Image.fromarray(u).save(tmp_path / "a.tif")
    found = np.asarray(read_image(tmp_path / "a.tif", 1))
    np.testing.assert_array_equal(found, np.round(u.astype(np.float64) * 255 / white))


def test_all_images_of_a_folder_have_one_white_level(tmp_path):
    """A dark image next to a bright one stays dark."""
    dark, bright = VALUES.astype(np.int32), VALUES.astype(np.int32) * 257
    whites = find_whites(["I", "L", "I;16", "I"], [dark.max(), None, 300, bright.max()].__getitem__)
    assert whites == WhiteLevels(whole=65535)
    Image.fromarray(dark).save(tmp_path / "dark.tif")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "dark.tif", 1, whites=whites)), np.round(dark / 257))
    assert find_whites(["F", "F"], [0.25, 1.0].__getitem__) == WhiteLevels(floating=1)
    assert find_whites(["F", "I"], [1.3, 7].__getitem__) == WhiteLevels(whole=255)  # 1.3 is in no range
