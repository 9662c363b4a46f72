"""Maps that were computed before, beside the frames of sequences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from small_sets import FRAME_HEADER, write_table

from nas_kd.data import (
    ClipLoader,
    DataError,
    SequencesConfig,
    Subset,
    UnusableRowsError,
    augment_batch,
    check_sample,
    load,
)
from nas_kd.data.augment import NUM_DRAWS
from nas_kd.data.frame_maps import map_values, read_map
from nas_kd.data.frame_sampling import take_frames
from nas_kd.data.sample import DecodeError, stack

HEIGHT, WIDTH = 12, 20
STEP = 1 / 65535


def map_of(sequence, number):
    """Values of a frame's map, of half its resolution; each is distinct."""
    count = HEIGHT // 2 * WIDTH // 2
    order = np.random.default_rng((sequence, number)).permutation(count)
    return (order.reshape(HEIGHT // 2, WIDTH // 2) / (count - 1)).astype(np.float32)


@pytest.fixture
def root(tmp_path):
    """Four sequences; maps `fine` as 16-bit images, `coarse` as arrays."""
    root = tmp_path / "set"
    rows = []
    for folder in ("frames", "teacher/fine/frames", "teacher/coarse/frames"):
        (root / folder).mkdir(parents=True)
    for sequence, split in enumerate(("train", "train", "val", "test")):
        for number in range(4):
            stem = f"frames/{sequence}_{number}"
            Image.fromarray(np.full((HEIGHT, WIDTH, 3), 10 * number, np.uint8)).save(root / f"{stem}.jpg")
            Image.fromarray(np.eye(HEIGHT, WIDTH, dtype=np.uint8)).save(root / f"{stem}_mask.png")
            values = map_of(sequence, number)
            fine = np.repeat(np.repeat(values, 2, 0), 2, 1)
            Image.fromarray((fine * 65535).round().astype(np.uint16)).save(root / f"teacher/fine/{stem}.png")
            np.save(root / f"teacher/coarse/{stem}.npy", values.astype(np.float64))
            rows.append((f"{stem}.jpg", f"{stem}_mask.png", split, str(sequence), str(number)))
    write_table(root, rows, FRAME_HEADER)
    return root


def config(root, **change):
    maps = {"fine": "teacher/fine", "coarse": "teacher/coarse"}
    options = {"root": root, "frames": 2, "size": (HEIGHT, WIDTH), "binary": True, "maps": maps, "stride": 1}
    return SequencesConfig.model_validate({**options, "cache_dir": root.parent / "cache", **change})


def interpolated(values, rows, columns):
    """Bilinear, at positions in pixel indices; beyond the outer centres the border is repeated."""
    result = np.empty((len(rows), len(columns)))
    for i, row in enumerate(np.clip(rows, 0, values.shape[0] - 1)):
        for j, column in enumerate(np.clip(columns, 0, values.shape[1] - 1)):
            y, x = min(int(row), values.shape[0] - 2), min(int(column), values.shape[1] - 2)
            b, a = row - y, column - x
            upper = values[y, x] * (1 - a) + values[y, x + 1] * a
            lower = values[y + 1, x] * (1 - a) + values[y + 1, x + 1] * a
            result[i, j] = upper * (1 - b) + lower * b
    return result


def test_samples_hold_the_maps_of_their_frames(root):
    splits = load(config(root), seed=0)
    assert splits.info.map_names == ("fine", "coarse")
    for index in range(2):
        sample = splits.test[index]
        check_sample(sample, splits.info, "test")
        for place in range(2):
            values = map_of(3, 2 * index + place)
            fine = np.repeat(np.repeat(values, 2, 0), 2, 1)
            assert np.abs(sample["map.fine"][place].numpy() - fine).max() <= STEP
            # Twice the size: positions in the source are (i + ½) / 2 − ½.
            rows, columns = ((np.arange(n) + 0.5) / 2 - 0.5 for n in (HEIGHT, WIDTH))
            assert np.abs(sample["map.coarse"][place].numpy() - interpolated(values, rows, columns)).max() <= STEP
    assert sample["map.fine"].dtype == torch.float32


def test_batches_are_the_same_from_memory_and_disk(root):
    part = load(config(root), seed=0).retrain
    keys = ("clip", "mask", "map.fine")
    one, two = (
        list(ClipLoader(Subset(base, part.indices), 3, shuffle=True, augment="flip+crop", keys=keys).epoch(1))
        for base in (stack(part.base), part.base)
    )
    for a, b in zip(one, two, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in keys)


def test_changed_maps_are_read_again_and_other_folders_apart(root):
    load(config(root), seed=0)
    np.save(root / "teacher/coarse/frames/3_0.npy", np.full((1, 1), 0.25, np.float32))
    Image.fromarray(np.full((3, 2), 51, np.uint8)).save(root / "teacher/fine/frames/3_1.png")
    sample = load(config(root), seed=0).test[0]
    assert bool((sample["map.coarse"][0] - 0.25).abs().max() <= STEP)
    assert torch.equal(sample["map.fine"][1], torch.full((HEIGHT, WIDTH), 0.2))
    assert set(load(config(root, maps={}), seed=0).test[0]) == {"clip", "label", "mask", "sequence"}
    swapped = load(config(root, maps={"fine": "teacher/coarse"}), seed=0).test[0]
    assert torch.equal(swapped["map.fine"], sample["map.coarse"])


@pytest.mark.parametrize(
    ("size", "fit", "scaled", "left"), [((6, 6), "crop", (6, 10), 2), ((6, 6), "stretch", (6, 6), 0)]
)
def test_maps_are_cut_as_their_frames(tmp_path, size, fit, scaled, left):
    """Steps along the width survive where the frame's would: 2-pixel cells of the map, scaled to half."""
    values = np.repeat(np.linspace(0, 1, 10, dtype=np.float32)[None], 6, 0)
    np.save(tmp_path / "map.npy", values)
    found = map_values(torch.from_numpy(read_map(tmp_path / "map.npy", (HEIGHT, WIDTH), *size, fit)))
    assert found.shape == size
    if scaled == (6, 10):  # the resolution of the map: nothing is blurred
        assert np.abs(found.numpy() - values[:, left : left + 6]).max() <= STEP
    else:  # a ramp stays a ramp but for its ends
        assert np.abs(found[0, 1:-1].numpy() - ((np.arange(1, 5) + 0.5) / 6 * 10 - 0.5) / 9).max() <= 0.01


@pytest.mark.parametrize(("dtype", "one"), [(np.uint8, 255), (np.uint16, 65535)])
def test_grey_images_of_both_depths_are_exact(tmp_path, dtype, one):
    values = np.array([[0, one // 5], [one, 2]], dtype)
    Image.fromarray(values).save(tmp_path / "map.png")
    found = map_values(torch.from_numpy(read_map(tmp_path / "map.png", (2, 2), 2, 2, "crop")))
    assert np.abs(found.numpy() - values / one).max() < 1e-7


def test_every_frame_without_a_usable_map_is_listed(root):
    fine, coarse = root / "teacher/fine/frames", root / "teacher/coarse/frames"
    (fine / "0_0.png").unlink()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(fine / "0_1.png")
    (fine / "0_2.png").write_text("no image")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(fine / "0_3.jpg")
    np.save(coarse / "1_0.npy", np.full((2, 2), 1.5))
    np.save(coarse / "1_1.npy", np.zeros((2, 2, 1)))
    np.save(coarse / "1_2.npy", np.array([[np.nan, 0.5]]))
    (coarse / "1_3.npy").write_bytes(b"\x93NUMPY")
    np.save(coarse / "2_0.npy", np.zeros((2, 2), np.int64))
    np.save(coarse / "2_1.npy", np.zeros((0, 5)))
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000000), }".ljust(117) + "\n"
    (coarse / "2_2.npy").write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + header.encode())
    with pytest.raises(UnusableRowsError) as caught:
        load(config(root), seed=0)
    problems = dict(caught.value.problems)
    expected = {
        "0_0": "map fine: there is no teacher/fine/frames/0_0.npy (or .png, .jpg, .jpeg) in root",
        "0_1": "map fine, 0_1.png: a map must be a grey image of 8 or 16 bits, but its mode is RGB",
        "0_2": "map fine, 0_2.png: not a readable image",
        "0_3": "map fine: there must be one map, but there are 0_3.png and 0_3.jpg",
        "1_0": "map coarse, 1_0.npy: the values of a map must lie in [0, 1], but they span 1.5 to 1.5; scale them",
        "1_1": "two dimensions height and width, of floats, but it has 3 dimensions of float64",
        "1_2": "the values of a map must lie in [0, 1], but 1 of 2 are NaN; write 0",
        "1_3": "map coarse, 1_3.npy: not a readable array of numpy",
        "2_0": "of floats, but it has 2 dimensions of int64",
        "2_1": "a map must hold values, but it is empty, of 0 x 5",
        "2_2": "map coarse, 2_2.npy: not a readable array of numpy",
    }
    assert problems.keys() == {f"frames/{name}.jpg" for name in expected}
    for name, words in expected.items():
        assert words in problems[f"frames/{name}.jpg"]


def test_a_folder_without_the_maps_of_any_frame_is_one_mistake(root):
    """Such as one that lacks the first part of the frames' paths."""
    (root / "teacher/fine/frames").rename(root / "teacher/fine/other")
    with pytest.raises(DataError) as caught:
        load(config(root), seed=0)
    assert str(caught.value) == (
        "data.maps must name folders that hold a map at each frame's path, but no frame has one in data.maps.fine: for "
        "frames/0_0.jpg, there is no teacher/fine/frames/0_0.npy (or .png, .jpg, .jpeg) in root; move the maps or mend "
        "the folder"
    )
    (root / "teacher/fine/frames").mkdir()
    (root / "teacher/fine/other/0_0.png").rename(root / "teacher/fine/frames/0_0.png")
    with pytest.raises(UnusableRowsError, match="15 of 16 are not"):
        load(config(root), seed=0)


def test_a_map_that_vanishes_is_no_map(tmp_path):
    with pytest.raises(DecodeError, match="no such file"):
        read_map(tmp_path / "map.npy", (4, 4), 4, 4, "crop")


def test_maps_move_with_their_clips():
    clip = torch.zeros(1, 3, 2, 20, 28, dtype=torch.uint8)
    clip[..., 4:12, 6:15] = 200
    shown = (clip[:, 0] > 0).float()
    batch = {"clip": clip, "map.full": shown, "map.soft": shown.half(), "label": torch.tensor([0])}
    flipped = augment_batch(batch, "flip", torch.zeros(1, NUM_DRAWS))
    assert torch.equal(flipped["map.soft"], batch["map.soft"].flip(-1))
    for seed in range(5):
        draws = torch.rand(1, NUM_DRAWS, generator=torch.Generator().manual_seed(seed))
        moved = augment_batch(batch, "flip+crop", draws)
        assert moved["map.soft"].dtype == torch.float16
        assert torch.allclose(moved["map.soft"].float(), moved["map.full"], atol=1e-3)


def test_frames_are_taken_with_their_maps():
    batch = {"clip": torch.zeros(2, 3, 4, 5, 5), "map.soft": torch.arange(4.0).expand(2, 4)[:, :, None, None].clone()}
    taken = take_frames(batch, torch.tensor([[1, 3], [0, 2]]))
    assert taken["map.soft"][..., 0, 0].tolist() == [[1, 3], [0, 2]]


def test_the_contract_holds_maps(root):
    splits = load(config(root), seed=0)
    sample = splits.test[0]
    for change, words in (
        ({"map.fine": sample["map.fine"].double()}, "must be torch.float32 or torch.float16"),
        ({"map.fine": sample["map.fine"][:1]}, r"must have the shape \(2, 12, 20\)"),
        ({"map.coarse": sample["map.coarse"] + 1}, r"\['map.coarse'\] must lie in \[0, 1\]"),
    ):
        with pytest.raises(DataError, match=words):
            check_sample({**sample, **change}, splits.info, "test[0]")
    with pytest.raises(DataError, match=r"must hold 'map\.fine'"):
        check_sample({key: sample[key] for key in sample if key != "map.fine"}, splits.info, "test[0]")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"maps": {"a.b": "maps"}}, "of letters, digits, _ and -, but one is 'a.b'"),
        ({"maps": {"a": "../maps"}}, "must lie inside of root and be relative to it, but it is ../maps"),
        ({"maps": {"a": "/maps"}}, "must lie inside of root and be relative to it, but it is /maps"),
        ({"camera": {}}, "maps belong to frames as they are, but a camera moves them; leave out maps or camera"),
    ],
)
def test_config_refuses(root, change, words):
    with pytest.raises(ValidationError, match=words):
        config(root, **change)
