"""Images as viewers show them: orientation, palettes, depths, animations; frames and label images alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from small_sets import FRAME_HEADER, write_table

from nas_kd.data import SequencesConfig, UnusableRowsError, load
from nas_kd.data.decode import read_clip, read_still
from nas_kd.data.frame_maps import map_values, read_map
from nas_kd.data.sample import DecodeError

# EXIF orientation → what the file holds of an upright image; those from 5 on exchange rows and columns.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright.swapaxes(0, 1), 2),
    8: lambda upright: np.rot90(upright, -1),
}


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def scene() -> np.ndarray:
    """[16, 24, 3] with a bright object in the upper left."""
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[2:6, 3:11] = 250
    return pixels


@pytest.mark.parametrize("orientation", STORED)
def test_frames_label_images_and_maps_are_turned_upright(tmp_path, orientation):
    """Each has its own orientation, as tools that draw on the upright photo leave it."""
    rows = []
    for number, split in enumerate(("train", "train", "val", "test")):
        stored = np.ascontiguousarray(STORED[orientation](scene()))
        Image.fromarray(stored).save(tmp_path / f"{number}.jpg", exif=exif(orientation), quality=95, subsampling=0)
        mask = (scene()[..., 0] > 0).astype(np.uint8)
        if number % 2:  # a label image may be stored turned as well
            stored = np.ascontiguousarray(STORED[orientation](mask))
            Image.fromarray(stored).save(tmp_path / f"{number}.png", exif=exif(orientation))
        else:
            Image.fromarray(mask).save(tmp_path / f"{number}.png")
        rows.append((f"{number}.jpg", f"{number}.png", split, f"s{number}", "0"))
    write_table(tmp_path, rows, FRAME_HEADER)
    config = SequencesConfig(root=tmp_path, binary=True, frames=1, size=(16, 24), cache_dir=tmp_path / "cache")
    splits = load(config, seed=0)
    for part in (splits.retrain, splits.val, splits.test):
        assert ((part[0]["clip"][0] > 127) == (part[0]["mask"] == 1)).all()
        assert (part[0]["clip"][:, 0, 2:6, 3:11] > 200).all()
    values = map_values(torch.from_numpy(read_map(tmp_path / "1.png", (16, 24), 16, 24, "crop")))
    assert np.argwhere(values.numpy() > 0).min(0).tolist() == [2, 3]


def test_a_label_image_of_the_stored_photo_is_refused_with_the_reason(tmp_path):
    Image.fromarray(np.ascontiguousarray(STORED[6](scene()))).save(tmp_path / "0.jpg", exif=exif(6))
    Image.fromarray(np.zeros((24, 16), np.uint8)).save(tmp_path / "0.png")
    write_table(tmp_path, [("0.jpg", "0.png", "train", "a", "0"), ("1.jpg", "1.png", "val", "b", "0")], FRAME_HEADER)
    config = SequencesConfig(root=tmp_path, binary=True, frames=1, size=8, cache_dir=tmp_path / "cache")
    with pytest.raises(UnusableRowsError, match=r"16x24, but it has 24x16 .*an EXIF orientation of either is applied"):
        load(config, seed=0)


def images() -> dict[str, tuple[Image.Image, tuple[int, int, int]]]:
    """File name → an image of one colour, and what a viewer shows of it."""
    palette = Image.fromarray(np.ones((8, 8), np.uint8))
    palette.putpalette([0, 0, 0, 200, 60, 30])
    colour = Image.new("RGB", (8, 8), (200, 60, 30))
    grey16 = np.full((8, 8), 150 * 257, np.uint16)
    return {
        "grey.png": (Image.new("L", (8, 8), 150), (150, 150, 150)),
        "bit.png": (Image.new("1", (8, 8), 1), (255, 255, 255)),
        "palette.png": (palette, (200, 60, 30)),
        "alpha.png": (Image.new("RGBA", (8, 8), (200, 60, 30, 0)), (200, 60, 30)),
        "grey-alpha.png": (Image.new("LA", (8, 8), (150, 9)), (150, 150, 150)),
        "grey16.png": (Image.fromarray(grey16), (150, 150, 150)),
        "grey16.tif": (Image.fromarray(grey16), (150, 150, 150)),
        "grey16.pgm": (Image.fromarray(grey16.astype(np.int32)), (150, 150, 150)),
        "cmyk.jpg": (Image.new("CMYK", (8, 8), (0, 0, 0, 105)), (150, 150, 150)),
        "odd%03d.png": (colour, (200, 60, 30)),
        "photo.mp4": (colour, (200, 60, 30)),  # a PNG, whatever it is called
    }


@pytest.mark.parametrize("name", images())
def test_every_kind_of_image_shows_its_colours(tmp_path, name):
    image, colour = images()[name]
    image.save(tmp_path / name, format="PNG" if name == "photo.mp4" else None)
    clip = read_clip(tmp_path / name, 2, 5, 7, "crop")
    assert clip.shape == (3, 2, 5, 7)
    assert np.abs(clip.astype(int) - np.reshape(colour, (3, 1, 1, 1))).max() <= 3


def test_images_that_are_cut_short_are_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for suffix in ("jpg", "png", "webp", "bmp"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(DecodeError, match=r"not a readable image \(it is damaged or cut short\)"):
            read_clip(path, 1, 8, 8, "crop")


def test_images_of_an_unknown_range_are_refused(tmp_path):
    Image.fromarray(np.full((8, 8), 3.5, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DecodeError, match="8 or 16 bits a channel, but its mode is F of 32 bits"):
        read_clip(tmp_path / "a.tif", 1, 8, 8, "crop")


@pytest.mark.parametrize("suffix", ["png", "webp", "gif"])
def test_animations_are_videos(tmp_path, suffix):
    """Four frames, of which the last is shown for seven tenths of the time."""
    frames = [Image.new("RGB", (8, 8), (level, level, level)) for level in (10, 60, 120, 200)]
    path = tmp_path / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=[100, 100, 100, 700], **options)
    levels = read_clip(path, 10, 8, 8, "crop")[0].mean(axis=(1, 2))
    assert np.abs(levels - [10, 60, 120, *[200] * 7]).max() <= 3
    if suffix != "gif":
        with pytest.raises(DecodeError, match="a single frame, but it has 4"):
            read_still(path, 8, 8, "crop")
