"""Videos as players show them. The grey level of a frame tells its number, a red corner which way is up."""

from __future__ import annotations

import io
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image
from small_sets import write_table

from nas_kd.data import FolderConfig, load, video
from nas_kd.data.decode import read_all_frames, read_clip
from nas_kd.data.frame_times import positions_in_time, sample_positions
from nas_kd.data.geometry import Scaler
from nas_kd.data.sample import DecodeError, PartlyReadableError

HEIGHT, WIDTH = 48, 64
EVEN = [40 * number for number in range(50)]  # ms
H264 = {"crf": "10", "preset": "ultrafast"}


def gop(length: int, **options: object) -> dict[str, str]:
    """Options of x264 for a key frame every so many frames, with B-frames."""
    params = {"keyint": length, "min-keyint": length, "scenecut": 0, "bframes": 2, **options}
    return {
        "crf": "10",
        "preset": "veryfast",
        "x264-params": ":".join(f"{key}={value}" for key, value in params.items()),
    }


def grey(number: int) -> np.ndarray:
    """[H, W, 3] frame of that number, below 56."""
    pixels = np.full((HEIGHT, WIDTH, 3), 20 + 4 * number, np.uint8)
    pixels[:12, :16] = (255, 0, 0)
    return pixels


def write(path: Path, times=EVEN, codec="libx264", options=H264, pixels=grey, prepare=None, before=None, **container):
    """One frame for each time in ms; `prepare` gets the stream, and `before` the container, before anything else."""
    with av.open(str(path), "w", **container) as out:
        if before:
            before(out)
        height, width = pixels(0).shape[:2]
        stream = out.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        if prepare:
            prepare(stream)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(pixels(number), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def numbers(path: Path, frames: int) -> list[int]:
    """Which frames a clip is made of."""
    clip = read_clip(path, frames, HEIGHT, WIDTH, "stretch")
    return [round((float(level) - 20) / 4) for level in clip[:, :, 24:, 20:].mean(axis=(0, 2, 3))]


def decoded(path: Path) -> list[int]:
    """Numbers of all frames that FFmpeg shows."""
    with av.open(str(path)) as container:
        shown = [frame.to_ndarray(format="rgb24")[24:, 20:].mean() for frame in container.decode(video=0)]
    return [round((float(level) - 20) / 4) for level in shown]


def red_corners(path: Path, is_portrait: bool) -> list[tuple[int, int]]:
    """The red corners of the first frame as (low, right)."""
    height, width = (WIDTH, HEIGHT) if is_portrait else (HEIGHT, WIDTH)
    frame = read_clip(path, 1, height, width, "crop")[:, 0].astype(int)
    quarters = {(y, x): frame[:, y * (height - 1), x * (width - 1)] for y in (0, 1) for x in (0, 1)}
    return [place for place, (red, green, _) in quarters.items() if red - green > 150]


def uniform(shown: list[int], frames: int) -> list[int]:
    return [shown[number] for number in sample_positions(len(shown), frames)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write(tmp_path_factory.mktemp("video") / "plain.mp4", options=gop(25))


def trimmed(source: Path, path: Path, start: int) -> Path:
    """Cut at a time in ms without encoding again: packets from the key frame on, an edit list hides the first."""
    with av.open(str(source)) as whole, av.open(str(path), "w") as out:
        stream = whole.streams.video[0]
        copied = out.add_stream_from_template(stream)
        ticks = int(start / 1000 / stream.time_base)
        whole.seek(ticks, stream=stream)
        for packet in whole.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - ticks, packet.dts - ticks, copied
                out.mux(packet)
    return path


@pytest.mark.parametrize("start", [0, 1200, 1520])
def test_frames_that_an_edit_list_hides_do_not_count(plain, tmp_path, start):
    path = trimmed(plain, tmp_path / "cut.mp4", start)
    shown = decoded(path)
    assert shown == list(range(start // 40, 50))
    for frames in (1, 4, 16):
        assert numbers(path, frames) == uniform(shown, frames)


def test_packets_that_show_nothing_do_not_count(tmp_path):
    """VP8 writes frames that others refer to as packets of their own, hidden by a bit of the first byte."""
    whole = write(tmp_path / "whole.webm", codec="libvpx", options={"deadline": "realtime", "cpu-used": "8"})
    path = tmp_path / "a.webm"
    with av.open(str(whole)) as source, av.open(str(path), "w") as out:
        copied = out.add_stream_from_template(source.streams.video[0])
        shown = 0
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size:
                content = bytearray(bytes(packet))
                is_shown = number % 7 != 3
                content[0] = content[0] | 16 if is_shown else content[0] & ~16
                made = av.Packet(bytes(content))
                made.stream, made.time_base, made.is_keyframe = copied, Fraction(1, 1000), packet.is_keyframe
                made.pts = made.dts = 40 * shown
                shown += is_shown
                out.mux(made)
    left = decoded(path)
    assert len(left) == shown == 43
    for frames in (1, 8, 32):
        assert numbers(path, frames) == uniform(left, frames)


def test_a_recorded_stream_may_begin_and_end_anywhere(tmp_path):
    whole = write(tmp_path / "whole.ts", options=gop(10, bframes=0)).read_bytes()
    packets = len(whole) // 188
    (tmp_path / "a.ts").write_bytes(whole[: 3 * 188] + whole[packets // 3 * 188 : -100])
    shown = decoded(tmp_path / "a.ts")
    assert shown == list(range(20, 20 + len(shown)))
    assert len(shown) > 28
    assert numbers(tmp_path / "a.ts", 8) == uniform(shown, 8)


def test_breaks_of_recordings_take_no_time(tmp_path):
    """Two recordings of a second, of which the later begins ten hours later, in either order."""
    early = write(tmp_path / "early.ts", EVEN[:25], options=gop(10)).read_bytes()
    late = [36_000_000 + time for time in EVEN[:25]]
    late = write(tmp_path / "late.ts", late, options=gop(10), pixels=lambda number: grey(25 + number)).read_bytes()
    path = tmp_path / "a.ts"
    path.write_bytes(early + late)
    assert numbers(path, 8) == uniform(list(range(50)), 8)
    path.write_bytes(late + early)
    assert numbers(path, 8) == uniform([*range(25, 50), *range(25)], 8)


def test_uniform_means_uniform_in_time(tmp_path):
    """Eight frames in eight seconds, then 42 in two."""
    times = [*range(0, 8000, 1000), *range(8000, 10000, 48)]
    for name in ("a.mp4", "a.mkv"):
        path = write(tmp_path / name, times)
        assert numbers(path, 8) == [0, 1, 3, 4, 5, 6, 10, 36]
    late = [*range(5000, 5800, 40), *range(8760, 9560, 40)]  # begins late, and the twentieth frame is shown for 3 s
    path = write(tmp_path / "b.mkv", late)
    assert numbers(path, 8) == [7, 19, 19, 19, 19, 19, 19, 32]
    assert [frame.time for frame in read_all_frames(path)] == pytest.approx([(time - 5000) / 1000 for time in late])


def test_times_choose_frames():
    def chosen(times, last, wanted, tick=0.0):
        return positions_in_time(times, last, wanted, tick).tolist()

    assert chosen([0, 1, 2, 3], 1, 4) == [0, 1, 2, 3]
    assert chosen([-3, -2, -1, 0], 1, 2) == [1, 3]
    assert chosen([0, 1], 8, 3) == [1, 1, 1]  # the second is shown from 1 to 9
    assert chosen([0, 1, 9], 0, 2) == [1, 2]  # from 1 to 9, and the last one for the usual 4.5
    assert chosen([0, 1, 9], 0, 3) == [1, 1, 2]
    assert chosen([5], 0, 3) == [0, 0, 0]
    assert chosen([0, 2, 1, 3], 1, 2) == [1, 3]  # no order of times: by number
    assert chosen([0, 0, 0], 0, 3) == [0, 1, 2]
    assert chosen([0, 1, 1, 9], 1, 2) == [2, 2]  # two at once: the later one is seen
    # Thirty frames a second in milliseconds, of which the rounding must not decide.
    rounded = [round(1000 * number / 30) / 1000 for number in range(90)]
    for wanted in (1, 4, 9, 45, 64):
        assert chosen(rounded, 0.033, wanted, 0.001) == sample_positions(90, wanted).tolist()


@pytest.mark.parametrize("name", ["a.avi", "a.h264", "a.flv", "a.mkv", "a.ts"])
def test_containers_without_usable_times_durations_or_counts(tmp_path, name):
    """AVI has no times of display, and its header may count wrongly; raw H.264 has no times at all."""
    path = write(tmp_path / name, options=gop(25))
    assert numbers(path, 7) == uniform(list(range(50)), 7)


def test_streams_that_begin_before_zero_or_late(tmp_path):
    for start in (-400, 5000):
        path = write(tmp_path / f"{start}.mkv", [start + time for time in EVEN])
        assert numbers(path, 5) == [5, 15, 25, 35, 45]


def sound(path: Path) -> Path:
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(bytes(8000))
    return path


def test_the_video_is_not_the_cover(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as out:
        tracks = [out.add_stream(codec, rate=25) for codec in ("mjpeg", "libx264")]
        for track, pixel_format in zip(tracks, ("yuvj420p", "yuv420p"), strict=True):
            track.height, track.width, track.pix_fmt = HEIGHT, WIDTH, pixel_format
        tracks[0].disposition, tracks[1].disposition = Disposition.default, Disposition(0)
        blue = av.VideoFrame.from_ndarray(np.full((HEIGHT, WIDTH, 3), (0, 0, 255), np.uint8), format="rgb24")
        out.mux(tracks[0].encode(blue))
        for number in range(20):
            out.mux(tracks[1].encode(av.VideoFrame.from_ndarray(grey(number), format="rgb24")))
        for track in tracks:
            out.mux(track.encode(None))
    assert numbers(path, 4) == [2, 7, 12, 17]


def test_the_default_track_is_taken_and_longer_sound_does_not_count(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as out:
        tracks = [out.add_stream("libx264", rate=25, options=H264) for _ in range(2)]
        for track in tracks:
            track.height, track.width, track.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        tracks[0].disposition, tracks[1].disposition = Disposition(0), Disposition.default
        audio = out.add_stream("pcm_s16le", rate=8000, layout="mono")
        for number in range(20):
            for track, first in zip(tracks, (0, 30), strict=True):
                out.mux(track.encode(av.VideoFrame.from_ndarray(grey(first + number), format="rgb24")))
        quiet = av.AudioFrame.from_ndarray(np.zeros((1, 24000), np.int16), format="s16", layout="mono")
        quiet.sample_rate = 8000
        out.mux(audio.encode(quiet))
        for stream in (*tracks, audio):
            out.mux(stream.encode(None))
    assert numbers(path, 4) == [32, 37, 42, 47]


def test_files_without_a_video_say_so(tmp_path):
    sound(tmp_path / "a.wav")
    (tmp_path / "drawing.mp4").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>')
    with av.open(str(tmp_path / "a.mp3"), "w") as out:
        audio, picture = out.add_stream("libmp3lame", rate=44100, layout="mono"), out.add_stream("png")
        picture.height, picture.width, picture.pix_fmt = 8, 8, "rgb24"
        picture.disposition = Disposition.attached_pic
        out.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((8, 8, 3), np.uint8), format="rgb24")))
        quiet = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.float32), format="fltp", layout="mono")
        quiet.sample_rate = 44100
        for stream, frame in ((audio, quiet), (audio, None), (picture, None)):
            out.mux(stream.encode(frame))
    for name, words in {
        "a.wav": "no video track, only sound",
        "a.mp3": "no video track, only a cover picture",
        "drawing.mp4": "not a readable image",
    }.items():
        with pytest.raises(DecodeError, match=words):
            read_clip(tmp_path / name, 2, 8, 8, "crop")


@pytest.mark.parametrize(
    ("turn", "corner"),
    [
        ((0, False, False), (0, 0)),
        ((90, False, False), (1, 0)),
        ((180, False, False), (1, 1)),
        ((-90, False, False), (0, 1)),
        ((0, True, False), (0, 1)),
        ((0, False, True), (1, 0)),
        ((90, True, False), (1, 1)),
        ((-90, True, False), (0, 0)),
    ],
)
def test_rotated_videos_are_upright(tmp_path, turn, corner):
    """Angles are counterclockwise; `corner` is (low, right) of the stored upper left corner, as FFmpeg shows it."""
    path = write(tmp_path / "a.mp4", EVEN[:2], prepare=lambda stream: stream.set_display_rotation(*turn))
    assert red_corners(path, abs(turn[0]) == 90) == [corner]


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (1, 1)), (6, (0, 1)), (8, (1, 0))])
def test_videos_of_photos_are_upright(tmp_path, orientation, corner):
    """Motion JPEG, of which each frame has an EXIF orientation."""
    photo, tags = io.BytesIO(), Image.Exif()
    tags[0x0112] = orientation
    Image.fromarray(grey(10)).save(photo, "JPEG", exif=tags)
    with av.open(str(tmp_path / "a.mkv"), "w") as out:
        stream = out.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuvj420p"
        out.start_encoding()
        for number in range(3):
            packet = av.Packet(photo.getvalue())
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 1000), True
            packet.pts = packet.dts = 40 * number
            out.mux(packet)
    assert red_corners(tmp_path / "a.mkv", orientation > 4) == [corner]


def test_pixels_need_not_be_square(tmp_path):
    """Pixels twice as wide as high: the shown frame is 128 x 48, of which the crop is the middle 48 x 48."""

    def bars(number: int) -> np.ndarray:
        pixels = np.full((HEIGHT, WIDTH, 3), 220, np.uint8)
        pixels[:, 20:44] = 40
        return pixels

    def wide(stream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)

    path = write(tmp_path / "a.mp4", EVEN[:2], pixels=bars, prepare=wide)
    assert read_clip(path, 1, HEIGHT, HEIGHT, "crop")[:, :, :, 2:-2].max() < 60
    assert read_clip(path, 1, HEIGHT, 128, "stretch")[0, 0, 20, 30] > 200


@pytest.mark.parametrize(
    ("codec", "pixel_format", "color_range", "colorspace", "height"),
    [
        ("libx264", "yuv420p", 1, 1, 48),
        ("libx264", "yuv420p", 2, 5, 48),
        ("libx264", "yuv422p10le", 1, 1, 48),
        ("ffv1", "yuv420p", 1, 5, 47),
        ("ffv1", "bgr0", None, None, 47),
        ("ffv1", "yuv444p16le", 1, 5, 48),
    ],
)
def test_colours_survive_every_pixel_format(tmp_path, codec, pixel_format, color_range, colorspace, height):
    colour = (200, 60, 30)
    spaces = {1: "ITU709", 5: "ITU601", None: None}
    with av.open(str(tmp_path / "a.mkv"), "w") as out:
        stream = out.add_stream(codec, rate=25, options={"crf": "1"} if codec == "libx264" else {})
        stream.height, stream.width, stream.pix_fmt = height, height + 16, pixel_format
        if colorspace:
            stream.codec_context.color_range, stream.codec_context.colorspace = color_range, colorspace
        frame = av.VideoFrame.from_ndarray(np.full((height, height + 16, 3), colour, np.uint8), format="rgb24")
        how = {"dst_colorspace": spaces[colorspace], "dst_color_range": color_range}
        out.mux(stream.encode(frame.reformat(format=pixel_format, **how)))
        out.mux(stream.encode(None))
    found = read_clip(tmp_path / "a.mkv", 1, 33, 31, "crop").mean(axis=(1, 2, 3))
    assert np.abs(found - colour).max() < 5


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """Frames of equal size in the file, so that a share of its bytes is that share of its frames."""
    rng = np.random.default_rng(0)
    made = tmp_path_factory.mktemp("noisy")

    def noise(number: int) -> np.ndarray:
        return rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)

    times = range(0, 4000, 40)
    front = write(made / "a.mp4", times, options=gop(5), pixels=noise, container_options={"movflags": "faststart"})
    return {"mp4": front.read_bytes(), "mkv": write(made / "a.mkv", times, options=gop(5), pixels=noise).read_bytes()}


@pytest.mark.parametrize("kind", ["mp4", "mkv"])
@pytest.mark.parametrize(("damage", "frames"), [("cut", 1), ("zeroed", 4)])
def test_a_partly_readable_video_is_refused_with_what_is_left(noisy, tmp_path, kind, damage, frames):
    path = tmp_path / f"a.{kind}"
    kept = noisy[kind][: int(0.7 * len(noisy[kind]))]
    path.write_bytes(kept if damage == "cut" else kept + bytes(len(noisy[kind]) - len(kept)))
    with pytest.raises(
        PartlyReadableError, match=r"^only (6|7)\d of (99|100|101) frames \(2\.[6-9] of 4\.0 s\) can be decoded"
    ):
        read_clip(path, frames, 16, 16, "crop")


@pytest.mark.parametrize("content", ["zeros", "noise"])
def test_damage_between_the_kept_frames_counts(noisy, tmp_path, content):
    """Two frames, before and after the damage, would be decoded from their key frames."""
    path, whole = tmp_path / "a.mp4", noisy["mp4"]
    start, end = int(0.3 * len(whole)), int(0.45 * len(whole))
    lost = np.random.default_rng(0).integers(0, 256, end - start, dtype=np.uint8).tobytes()
    path.write_bytes(whole[:start] + (lost if content == "noise" else bytes(end - start)) + whole[end:])
    with pytest.raises(PartlyReadableError, match=r"^only 8\d of 100 frames \(3\.[3-5] of 4\.0 s\) can be decoded"):
        read_clip(path, 2, 16, 16, "crop")
    path.write_bytes(whole)
    assert read_clip(path, 2, 16, 16, "crop").shape == (3, 2, 16, 16)


def test_skipping_counts_partly_readable_videos(noisy, tmp_path):
    rows = []
    for number, split in enumerate(("train", "train", "val", "test", "train")):
        name, content = f"{number}.mp4", bytearray(noisy["mp4"])
        content[-1] = number
        (tmp_path / name).write_bytes(content if number < 4 else content[:-20000])
        rows.append((name, "xy"[number % 2], split))
    write_table(tmp_path, [*rows, ("gone.mp4", "x", "train")])
    config = FolderConfig(root=tmp_path, frames=2, size=16, on_error="skip", cache_dir=tmp_path / "cache")
    splits = load(config, seed=0)
    words = "2 of 6 rows of labels.csv were left out, 1 of them because only a part of the video can be decoded"
    assert words in splits.notes
    assert dict(splits.skipped)["4.mp4"].startswith("only 9")


@pytest.mark.parametrize("options", [gop(5), gop(5, **{"open-gop": 1})])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_long_videos_are_decoded_from_key_frames_with_the_same_result(tmp_path, monkeypatch, name, options):
    times = np.cumsum(np.random.default_rng(0).integers(20, 60, 150)).tolist()
    path = write(tmp_path / name, times, options=options, pixels=lambda number: grey(number % 50))
    found: list[np.ndarray | None] = []
    read = video._read_from_key_frames

    def noted(*args: object) -> np.ndarray | None:
        found.append(read(*args))
        return found[-1]

    monkeypatch.setattr(video, "_read_from_key_frames", noted)
    clips = [video.read_video(path, frames, Scaler(24, 32, "crop")) for frames in (1, 2, 3, 50)]
    assert [clip is None for clip in found] == [False, False, False, True]
    monkeypatch.setattr(video, "_read_from_key_frames", lambda *_: None)
    for clip in clips:
        whole = video.read_video(path, clip.shape[1], Scaler(24, 32, "crop"))
        assert (clip == whole).all()


def test_only_frames_that_are_kept_are_converted(plain, monkeypatch):
    converted: list[object] = []
    convert = Scaler.__call__
    monkeypatch.setattr(Scaler, "__call__", lambda self, *args: converted.append(args) or convert(self, *args))
    read_clip(plain, 8, 16, 16, "crop")
    assert len(converted) == 8
