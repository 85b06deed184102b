"""The benchmarks measure what they say, on scikit-image's astronaut and drawn faces."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
import skimage.data
import skimage.metrics

# Last, so that the installed package is found before anything in the source tree.
sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))

import dataset
import fairness
import identity
import measure
import metrics
import peers
import plots
import rate_distortion
import realism
import release
import tables
import targets

from fasdiff_edge.imaging import write_picture
from fasdiff_edge.peers import fit

# The astronaut's eyes, nose and mouth corners in the crop that `face` gives, in pixels.
LANDMARKS = np.array([[111, 102], [154, 104], [132, 130], [114, 148], [152, 148]], dtype=float)


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    return np.ascontiguousarray(skimage.data.astronaut()[0:256, 92:348])


@pytest.fixture(scope="module")
def recogniser() -> identity.Identity:
    return identity.Identity()


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), sigma)


def read_tsv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


# --- metrics ---


def test_ssim_agrees_with_scikit_image(face: np.ndarray) -> None:
    other = blurred(face, 2.0)
    weights = np.array([0.299, 0.587, 0.114])
    _, full = skimage.metrics.structural_similarity(
        face @ weights,
        other @ weights,
        data_range=255.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    assert metrics.ssim(face, other) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-6)


@pytest.mark.parametrize("metric", [metrics.ssim, metrics.ms_ssim])
def test_similarity_is_one_for_the_same_and_falls_with_blur(metric, face: np.ndarray) -> None:
    values = [metric(face, face), *(metric(face, blurred(face, sigma)) for sigma in (1, 2, 4))]
    assert values[0] == pytest.approx(1.0)
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.9


def test_ms_ssim_forgives_what_is_seen_only_close_up(face: np.ndarray) -> None:
    other = blurred(face, 2.0)
    assert metrics.ms_ssim(face, other) > metrics.ssim(face, other)


@pytest.mark.parametrize(("metric", "side"), [(metrics.ssim, 10), (metrics.ms_ssim, 175)])
def test_similarity_refuses_small_images(metric, side: int) -> None:
    image = np.zeros((side, 256, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="at least"):
        metric(image, image)
    with pytest.raises(ValueError, match="shapes"):
        metric(image, image[:, :-1])


def test_ssimulacra2(face: np.ndarray) -> None:
    assert metrics.has_ssimulacra2()
    assert metrics.ssimulacra2(face, face) == pytest.approx(100.0)
    assert metrics.ssimulacra2(face, blurred(face, 1.0)) > metrics.ssimulacra2(
        face, blurred(face, 4.0)
    )


# --- identity ---


def test_identity_grows_with_damage(recogniser: identity.Identity, face: np.ndarray) -> None:
    found, source = recogniser.landmarks(face)
    assert source == "detector"
    images = [face, blurred(face, 1.0), blurred(face, 4.0), np.full_like(face, 128)]
    same, little, much, nobody = recogniser.distances(face, images, found)
    assert same == 0.0
    assert 0.0 < little < much < nobody
    assert little < identity.SAME_PERSON < nobody


def test_landmarks_fall_back_on_what_is_known(
    recogniser: identity.Identity, face: np.ndarray
) -> None:
    found, _ = recogniser.landmarks(face)
    hidden = np.full_like(face, 128)
    assert recogniser.landmarks(hidden) == (None, "none")
    shape, source = recogniser.landmarks(hidden, LANDMARKS)
    assert shape is not None
    assert source == "landmarks"
    # The box made from landmarks is about the box that the detector finds.
    box, expected = identity.face_box(LANDMARKS), found.rect
    overlap = box.intersect(expected).area()
    assert overlap > 0.6 * (box.area() + expected.area() - overlap)


# --- peers ---


def test_every_peer_makes_files_that_fit(face: np.ndarray) -> None:
    available = peers.available_peers()
    names = [peer.name for peer in available]
    assert names[:3] == ["JPEG", "WebP", "AVIF"]
    assert sorted(names[3:] + list(peers.missing_peers())) == ["HEIC", "JPEG XL"]
    small = cv2.resize(face, (64, 64), interpolation=cv2.INTER_AREA)
    for peer in available:
        result = peers.PeerCache(None).fit(peer, small, [1000])[0]
        assert result.fits, peer.name
        assert result.psnr > 22.0, peer.name
        with PIL.Image.open(io.BytesIO(result.data)) as picture:
            assert picture.size == tuple(round(64 * result.scale) for _ in range(2))


def counted(peer: peers.Peer) -> tuple[peers.Peer, list[tuple[tuple[int, ...], float]]]:
    """The peer, and the (shape, quality) of each call of its encoder from now on."""
    calls: list[tuple[tuple[int, ...], float]] = []

    def encode(image: np.ndarray, quality: float) -> bytes:
        calls.append((image.shape, quality))
        return peer.encode(image, quality)

    return peers.Peer(peer.name, encode, peer.qualities), calls


def test_cache_remembers_and_gives_the_same(tmp_path: Path, face: np.ndarray) -> None:
    counting, calls = counted(peers.available_peers()[0])
    fresh = peers.PeerCache(None).fit(counting, face, [300, 2000])
    cache = peers.PeerCache(tmp_path / "cache")
    first = cache.fit(counting, face, [300])
    made = len(calls)
    assert cache.fit(counting, face, [300])[0].data == first[0].data
    assert len(calls) == made, "the cache searched again"
    both = cache.fit(counting, face, [300, 2000])
    assert len(calls) > made
    for ours, expected in zip(both, fresh, strict=True):
        assert (ours.data, ours.scale, ours.quality, ours.fits, ours.psnr) == (
            expected.data,
            expected.scale,
            expected.quality,
            expected.fits,
            expected.psnr,
        )
        assert np.array_equal(ours.image, expected.image)
    changed = face.copy()
    changed[0, 0, 0] ^= 1
    made = len(calls)
    cache.fit(counting, changed, [300])
    assert len(calls) > made, "another image took this one's entry"


def test_nothing_is_encoded_twice(face: np.ndarray) -> None:
    webp = peers.available_peers()[1]
    budgets = [1000, 300, 500]
    plain, plain_calls = counted(webp)
    expected = [fit(plain, face, [budget])[0] for budget in budgets]
    counting, calls = counted(webp)
    results = peers.PeerCache(None).fit(counting, face, budgets)
    assert len(set(calls)) == len(calls) < len(plain_calls)
    assert [result.data for result in results] == [result.data for result in expected]
    assert [result.quality for result in results] == [result.quality for result in expected]


@pytest.mark.parametrize("name", sorted(peers.TWINS))
def test_twins_give_the_same_file(name: str, face: np.ndarray) -> None:
    available = {peer.name: peer for peer in peers.available_peers()}
    if name not in available:
        pytest.skip(f"needs {peers.missing_peers()[name]}")
    peer, small = available[name], cv2.resize(face, (40, 32), interpolation=cv2.INTER_AREA)
    pairs = sorted(peers.TWINS[name].items())
    assert {quality for pair in pairs for quality in pair} <= set(peer.qualities)
    for quality, lower in pairs[:: -(-len(pairs) // 6)]:
        assert peer.encode(small, quality) == peer.encode(small, lower), quality
    counting, calls = counted(peer)
    results = peers.PeerCache(None).fit(counting, small, [300, 600])
    assert len(set(calls)) == len(calls) > 0
    assert not {quality for _, quality in calls} & set(peers.TWINS[name])
    expected = fit(peer, small, [300, 600])
    assert [result.data for result in results] == [result.data for result in expected]
    assert [result.quality for result in results] == [result.quality for result in expected]


# --- folders, with and without an index ---


@pytest.fixture
def faces(tmp_path: Path, face: np.ndarray) -> Path:
    """A folder like the validation set's: the astronaut, her mirror image, and a softer copy."""
    folder = tmp_path / "faces"
    mirrored = (LANDMARKS * (-1, 1) + (255, 0))[[1, 0, 2, 4, 3]]
    soft = blurred(face, 1.5)
    pictures = [
        ("val/a.png", face, LANDMARKS, "X", "Female", 30.0),
        ("val/b.png", soft, LANDMARKS, "X", "Female", 45.0),
        ("val/c.png", np.ascontiguousarray(face[:, ::-1]), mirrored, "Y", "Male", 31.0),
        ("train/d.png", face, LANDMARKS, "X", "Male", 30.0),
    ]
    names = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
    rows = []
    for file, image, points, race, gender, sharpness in pictures:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(write_picture(image, ".png"))
        row: dict[str, object] = {"file": file, "race": race, "gender": gender}
        row["sharpness_db"] = sharpness
        for name, point in zip(names, points, strict=True):
            row[f"{name}_x"], row[f"{name}_y"] = point
        rows.append(row)
    with open(folder / "index.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def test_index_takes_groups_in_turns(faces: Path) -> None:
    def names(*args: object) -> list[str]:
        return [picture.name for picture in dataset.load_pictures(faces, *args)]

    assert names("val") == ["val/a.png", "val/c.png", "val/b.png"]
    assert names("val", 38.0) == ["val/a.png", "val/c.png"]
    assert sorted(names()) == ["train/d.png", "val/a.png", "val/b.png", "val/c.png"]
    with pytest.raises(ValueError, match="no picture of 'test'"):
        names("test")


def test_an_index_may_say_less(faces: Path) -> None:
    index = faces / "index.csv"
    index.write_text("file,race\nval/a.png,X\n")
    (picture,) = dataset.load_pictures(faces)
    assert (picture.landmarks, picture.group) == (None, ("X", ""))
    with pytest.raises(ValueError, match="no column sharpness_db"):
        dataset.load_pictures(faces, None, 38.0)
    index.write_text("name\nval/a.png\n")
    with pytest.raises(ValueError, match="no column file"):
        dataset.load_pictures(faces)


def test_a_folder_without_index(tmp_path: Path, face: np.ndarray) -> None:
    for name in ("b.JPG", "a.png"):
        (tmp_path / name).write_bytes(write_picture(face, Path(name).suffix))
    PIL.Image.fromarray(face).save(tmp_path / "c.webp")
    (tmp_path / "notes.txt").write_text("not a picture")
    pictures = dataset.load_pictures(tmp_path)
    assert [picture.name for picture in pictures] == ["a.png", "b.JPG", "c.webp"]
    assert {(picture.landmarks, picture.group) for picture in pictures} == {(None, ("", ""))}
    with pytest.raises(ValueError, match="sharpness"):
        dataset.load_pictures(tmp_path, None, 38.0)
    with pytest.raises(ValueError, match="holds neither"):
        dataset.load_pictures(tmp_path, "nowhere")


def test_faces_are_resized_with_their_landmarks(faces: Path, face: np.ndarray) -> None:
    entry = dataset.load_pictures(faces, "val")[0]
    image, landmarks = entry.load(None)
    assert np.array_equal(image, face)
    assert np.array_equal(landmarks, LANDMARKS)
    half, landmarks = entry.load(128)
    means = face.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
    assert np.abs(half - means).max() <= 0.5
    assert landmarks == pytest.approx((LANDMARKS - 0.5) / 2)


def test_the_middle_is_cut_from_what_is_not_square(tmp_path: Path, face: np.ndarray) -> None:
    wide = np.pad(face, ((0, 0), (10, 30), (0, 0)))
    path = tmp_path / "wide.png"
    path.write_bytes(write_picture(wide, ".png"))
    image, landmarks = dataset.Picture(path, path.name, LANDMARKS + (10, 0)).load(256)
    assert np.array_equal(image, wide[:, 20:276])
    assert landmarks == pytest.approx(LANDMARKS - (10, 0))
    image, _ = dataset.Picture(path, path.name).load(None)
    assert image.shape == wide.shape


def test_a_bad_picture_is_named(tmp_path: Path, face: np.ndarray, capsys) -> None:
    (tmp_path / "good.png").write_bytes(write_picture(face, ".png"))
    (tmp_path / "small.png").write_bytes(write_picture(face[:16], ".png"))
    with pytest.raises(SystemExit):
        rate_distortion.main(["--data", str(tmp_path), "--bytes", "300"])
    assert "small.png: width and height must be" in capsys.readouterr().err


# --- budgets ---


def test_budgets_in_bytes_and_in_bits_per_pixel() -> None:
    (whole,) = measure.parse_budgets("300", "B")
    assert (whole.label, whole.bytes(64, 64), whole.bytes(512, 512)) == ("300 B", 300, 300)
    tenth, half, exact = measure.parse_budgets("0.1, 0.5,0.29", "bpp")
    assert (tenth.label, tenth.bytes(256, 256)) == ("0.1 bpp", 819)  # of 819.2
    assert half.bytes(256, 256) == 4096
    assert half.bytes(33, 40) == 82  # of 82.5
    assert exact.bytes(100, 800) == 2900  # what a float would round down to 2899
    assert tenth.bytes(1, 1) == 1


@pytest.mark.parametrize(
    ("text", "unit"), [("0", "B"), ("-3", "bpp"), ("300.5", "B"), ("a", "B"), ("", "bpp")]
)
def test_bad_budgets(text: str, unit: str) -> None:
    with pytest.raises(ValueError):
        measure.parse_budgets(text, unit)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "GIF"], "no such peer here: GIF"),
        (["--bytes", "300,300"], "named twice"),
        (["--bpp", "1/0"], "Fraction"),
        (["--split", "test"], "lists no picture"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, faces: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        rate_distortion.main(["--data", str(faces), *arguments])
    assert message in capsys.readouterr().err


# --- rate and distortion ---


def test_rate_distortion(faces: Path, tmp_path: Path, capsys) -> None:
    results, per_image = tmp_path / "results", tmp_path / "per_image.tsv"
    arguments = ["--data", str(faces), "--split", "val", "--size", "64", "--limit", "2"]
    arguments += ["--bytes", "300,500", "--bpp", "0.8", "--peers", "JPEG,WebP"]
    arguments += ["--results", str(results), "--per-image", str(per_image)]
    assert rate_distortion.main(arguments) == 0
    printed = capsys.readouterr().out

    rows = read_tsv(results / "val-64.tsv")
    codecs = [measure.OURS, measure.OURS_FAITHFUL, "JPEG", "WebP"]
    budgets = {"300 B": 300, "500 B": 500, "0.8 bpp": 409}
    assert [(row["budget"], row["codec"]) for row in rows] == [
        (budget, codec) for budget in budgets for codec in codecs
    ]
    columns = [field.name for kind in (measure.Run, measure.Summary) for field in fields(kind)]
    assert list(rows[0]) == columns
    records = read_tsv(per_image)
    assert len(records) == 2 * len(rows)
    sharp, faithful = records[:2]  # one file, decoded twice
    assert (sharp["codec"], faithful["codec"]) == (measure.OURS, measure.OURS_FAITHFUL)
    assert sharp["bytes"] == faithful["bytes"]
    assert sharp["psnr"] != faithful["psnr"]
    for row in rows:
        members = [
            record
            for record in records
            if (record["codec"], record["budget"]) == (row["codec"], row["budget"])
        ]
        assert (row["images"], row["faces"]) == ("2", "2")
        for name, column in [("mean_bytes", "bytes"), ("psnr", "psnr"), ("identity", "identity")]:
            values = [float(member[column]) for member in members]
            assert float(row[name]) == pytest.approx(np.mean(values), rel=1e-3)
        for member in members:
            assert int(member["budget_bytes"]) == budgets[row["budget"]]
            if row["codec"] != "JPEG":
                assert int(member["bytes"]) <= budgets[row["budget"]]
    assert printed.count("| 300 B | FaSDiff-Edge |") == 1
    assert printed.count("| 300 B | recognition | FaSDiff-Edge |") == 1

    best = read_tsv(results / "val-64-best-peers.tsv")
    metric_names = ["psnr", "ssim", "identity", "recognition"]  # 64 pixels have no MS-SSIM
    assert [(row["budget"], row["metric"]) for row in best] == [
        (budget, metric) for budget in budgets for metric in metric_names
    ]
    comparison = read_tsv(results / "val-64-comparison.tsv")
    columns = [
        field.name for kind in (measure.Run, rate_distortion.Comparison) for field in fields(kind)
    ]
    assert list(comparison[0]) == columns
    assert len(comparison) == 3 * 6  # PSNR and SSIM once, identity and recognition twice
    assert "targets: none" in printed  # not 256 x 256

    again = tmp_path / "again"
    rate_distortion.main(["--records", str(per_image), "--results", str(again)])
    for path in results.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
    with PIL.Image.open(results / "val-64.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert len(np.unique(np.asarray(picture.convert("L")))) > 50


def test_a_folder_of_any_pictures(tmp_path: Path, face: np.ndarray, capsys) -> None:
    folder, per_image = tmp_path / "plain", tmp_path / "per_image.tsv"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    (folder / "noise.png").write_bytes(write_picture(noise, ".png"))
    arguments = ["--data", str(folder), "--bpp", "1.5", "--peers", "JPEG"]
    arguments += ["--results", str(tmp_path), "--per-image", str(per_image)]
    assert rate_distortion.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "plain: 1 image at their own size" in printed
    assert "No face is found in 1 of 1 images" in printed
    assert "dlib" not in printed
    assert {row["metric"] for row in read_tsv(tmp_path / "plain-native-best-peers.tsv")} == {
        "psnr",
        "ssim",
    }
    row = read_tsv(tmp_path / "plain-native.tsv")[0]
    assert (row["faces"], row["identity"], row["not_same"], row["recognition"]) == (
        "0",
        "nan",
        "0",
        "nan",
    )
    assert read_tsv(per_image)[0]["budget_bytes"] == "720"
    with pytest.raises(SystemExit):
        fairness.main(["--records", str(per_image), "--results", str(tmp_path)])
    assert "there are no groups" in capsys.readouterr().err


def test_a_face_that_the_detector_misses_counts_where_landmarks_are_known(
    faces: Path, tmp_path: Path, capsys
) -> None:
    hidden = np.full((256, 256, 3), 128, dtype=np.uint8)
    (faces / "val" / "a.png").write_bytes(write_picture(hidden, ".png"))
    arguments = ["--data", str(faces), "--split", "val", "--limit", "1", "--size", "64"]
    arguments += ["--peers", "JPEG", "--bytes", "500", "--results", str(tmp_path)]
    rate_distortion.main(arguments)
    row = read_tsv(tmp_path / "val-64.tsv")[0]
    assert (row["images"], row["faces"], row["detected"]) == ("1", "1", "0")
    assert float(row["identity"]) >= 0.0
    assert "1 faces are missed by the detector" in capsys.readouterr().out


def test_two_processes_give_the_same(faces: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(faces), "--size", "96", "--bytes", "600", "--peers", "WebP"]
    arguments += ["--limit", "2"]
    for jobs in ("1", "2"):
        rate_distortion.main([*arguments, "--jobs", jobs, "--results", str(tmp_path / jobs)])
    first, second = (tmp_path / jobs / "faces-96.tsv" for jobs in ("1", "2"))
    assert first.read_bytes() == second.read_bytes()


def record(codec: str, distance: float = math.nan, **changes: object) -> measure.Record:
    """A record of a face of 256x256 at 300 B, but for what is given."""
    values: dict[str, object] = dict.fromkeys(("psnr", "ssim", "ms_ssim"), math.nan)
    values |= {"file": "a", "race": "", "gender": "", "age": "", "width": 256, "height": 256}
    values |= {"codec": codec, "budget": "300 B", "budget_bytes": 300, "bytes": 300}
    values |= {"ssimulacra2": math.nan, "identity": distance, "face": "detector", **changes}
    return measure.Record(**values)


def test_shares_count_what_they_say() -> None:
    rows = [
        record("JPEG", 0.59, file="a", bytes=300),
        record("JPEG", 0.6, file="b", bytes=301, face="landmarks"),
        record("JPEG", 0.9, file="c", bytes=400),
        record("JPEG", file="d", bytes=400, face="none"),
    ]
    (summary,) = measure.summarise(rows)
    assert (summary.images, summary.faces, summary.detected) == (4, 3, 2)
    assert summary.share_over_budget == pytest.approx(3 / 4)
    assert summary.mean_bpp == pytest.approx(8 * 1401 / 4 / 65536)
    assert summary.not_same == 2
    assert summary.recognition == pytest.approx(1 / 3)
    assert summary.identity == pytest.approx((0.59 + 0.6 + 0.9) / 3)
    (shown,) = rate_distortion.table([summary])
    assert "SSIMULACRA2" not in shown
    assert shown["distance >= 0.6"] == "2 of 3"


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    run = measure.Run("1.2.3", "00ff", "val", "256")
    rows = [record("JPEG", 0.5999999, psnr=1 / 3), record("WebP", 0.6, face="none")]
    measure.write_records(tmp_path / "r.tsv", run, rows)
    again, read = measure.read_records(tmp_path / "r.tsv")
    assert again == run
    assert [str(row) for row in read] == [str(row) for row in rows]  # NaN is not equal to itself
    (tmp_path / "other.tsv").write_text("file\tcodec\na\tJPEG\n")
    with pytest.raises(ValueError, match="other.tsv"):
        measure.read_records(tmp_path / "other.tsv")


def test_files_of_an_effort_are_measured_as_well(faces: Path, tmp_path: Path, capsys) -> None:
    arguments = ["--data", str(faces), "--split", "val", "--size", "128", "--limit", "1"]
    arguments += ["--bytes", "300", "--peers", "JPEG", "--results", str(tmp_path)]
    assert rate_distortion.main([*arguments, "--effort", "4"]) == 0
    rows = {row["codec"]: row for row in read_tsv(tmp_path / "val-128.tsv")}
    assert list(rows) == [measure.OURS, measure.OURS_FAITHFUL, measure.OURS_REFINED, "JPEG"]
    assert float(rows[measure.OURS_REFINED]["mean_bytes"]) <= 300
    plain, refined = (float(rows[c]["psnr"]) for c in measure.ALL_OURS[1:3])
    assert refined > plain
    printed = capsys.readouterr().out
    assert printed.count(f"| 300 B | PSNR | {measure.OURS_REFINED} |") == 1


def test_files_that_follow_a_recogniser_are_measured_as_well(
    faces: Path, tmp_path: Path, recogniser_file: Path, capsys
) -> None:
    arguments = ["--data", str(faces), "--split", "val", "--size", "128", "--limit", "1"]
    arguments += ["--bytes", "300", "--peers", "JPEG", "--results", str(tmp_path)]
    arguments += ["--recogniser", str(recogniser_file)]
    with pytest.raises(SystemExit):
        rate_distortion.main(arguments)
    assert "--effort" in capsys.readouterr().err
    arguments += ["--effort", "3"]
    assert rate_distortion.main(arguments) == 0
    rows = {row["codec"]: row for row in read_tsv(tmp_path / "val-128.tsv")}
    assert list(rows) == [*measure.ALL_OURS, "JPEG"]
    assert float(rows[measure.OURS_ALIKE]["mean_bytes"]) <= 300
    assert rows[measure.OURS_ALIKE]["psnr"] != rows[measure.OURS_REFINED]["psnr"]
    assert f"| 300 B | dlib distance | {measure.OURS_ALIKE} |" in capsys.readouterr().out
    index = faces / "index.csv"
    index.write_text("file\nval/a.png\n")
    with pytest.raises(SystemExit):
        rate_distortion.main(arguments)
    assert "landmarks of an index" in capsys.readouterr().err


def means(codec: str, **figures: float) -> measure.Summary:
    """The summary of one record."""
    return measure.summarise([record(codec, figures.pop("identity", 0.4), **figures)])[0]


def test_each_figure_has_a_best_peer_of_its_own() -> None:
    summaries = [
        means(measure.OURS, psnr=99.0, ssim=0.99, identity=0.01),
        means(measure.OURS_FAITHFUL, psnr=99.0, ssim=0.99, identity=0.01),
        means(measure.OURS_REFINED, psnr=99.0, ssim=0.99, identity=0.01),
        means("JPEG", psnr=20.0, ssim=0.7, identity=0.7),
        means("WebP", psnr=25.0, ssim=0.8, identity=0.5),
        means("AVIF", psnr=24.0, ssim=0.9, identity=0.4),
    ]
    assert [
        (metric.name, peer.codec) for metric, peer in rate_distortion.best_peers(summaries)
    ] == [("psnr", "WebP"), ("ssim", "AVIF"), ("identity", "AVIF"), ("recognition", "WebP")]
    assert fairness.best_by_identity(summaries) == {"300 B": "AVIF"}


def compared(
    with_targets: bool = True, budget: str = "300 B", **figures: tuple[float, float]
) -> dict[tuple[str, str], rate_distortion.Comparison]:
    """Ours against one peer, by figure and codec, from (ours, peer) a figure."""
    rows = [
        record(codec, **{name: pair[index] for name, pair in figures.items()}, budget=budget)
        for codec, index in [(measure.OURS, 0), (measure.OURS_FAITHFUL, 0), ("WebP", 1)]
    ]
    asked = targets.targets_for(rows) if with_targets else {}
    comparisons = rate_distortion.compare(measure.summarise(rows), asked)
    return {(row.metric, row.codec): row for row in comparisons}


def test_targets_are_met_or_missed_by_so_much() -> None:
    both = (measure.OURS, measure.OURS_FAITHFUL)
    rows = compared(psnr=(27.25, 25.0), distance=(0.24, 0.5))
    gain = rows["PSNR", measure.OURS_FAITHFUL]
    assert (gain.difference, gain.target, gain.verdict) == (2.25, ">= +2.0 dB", "met by 0.25 dB")
    assert ("PSNR", measure.OURS) not in rows
    for codec in both:
        ratio = rows["dlib distance", codec]
        assert ratio.ratio == pytest.approx(0.48)
        assert (ratio.target, ratio.verdict) == ("<= 0.5x", "met by 0.02x")
        assert rows["recognition", codec].target == ""
    assert rate_distortion.verdict_line(list(rows.values())) == "targets: 3 of 3 met"

    rows = compared(psnr=(26.5, 25.0), distance=(0.3, 0.5))
    assert rows["PSNR", measure.OURS_FAITHFUL].verdict == "missed by 0.50 dB"
    assert rows["dlib distance", measure.OURS].verdict == "missed by 0.10x"
    line = rate_distortion.verdict_line(list(rows.values()))
    assert line.startswith("targets: 0 of 3 met; 300 B PSNR (FaSDiff-Edge, realism 0) missed by")

    assert compared(psnr=(25.5, 25.0), budget="1000 B")["PSNR", both[1]].verdict.startswith("met")
    assert compared(psnr=(26.1, 25.0), budget="0.2 bpp")["PSNR", both[1]].verdict == (
        "missed by 0.10 dB"
    )
    assert compared(psnr=(30.0, 25.0), budget="700 B")["PSNR", both[1]].verdict == ""
    assert compared(psnr=(30.0, 25.0), with_targets=False)["PSNR", both[1]].verdict == ""


def test_recognition_is_asked_for_where_the_peer_loses_any() -> None:
    def rows(lost_by_ours: int, lost_by_peer: int) -> rate_distortion.Comparison:
        records = [
            record(codec, 0.7 if index < lost else 0.3, file=str(index), budget="0.1 bpp")
            for codec, lost in [
                (measure.OURS, lost_by_ours),
                (measure.OURS_FAITHFUL, lost_by_ours),
                ("WebP", lost_by_peer),
            ]
            for index in range(100)
        ]
        comparisons = rate_distortion.compare(measure.summarise(records), targets.TARGETS)
        return next(row for row in comparisons if row.metric == "recognition")

    assert rows(0, 0).verdict == ""
    assert (rows(0, 2).target, rows(0, 2).verdict) == (">= +2.0 points", "met by 0.0 points")
    assert (rows(1, 2).difference, rows(1, 2).verdict) == (
        pytest.approx(1.0),
        "missed by 1.0 points",
    )
    assert rows(3, 10).target == ">= +3.5 points"
    assert rows(3, 10).verdict == "met by 3.5 points"


def test_targets_are_for_one_size() -> None:
    assert targets.targets_for([record("JPEG")]) == targets.TARGETS
    assert targets.targets_for([record("JPEG"), record("JPEG", width=257)]) == {}


def test_curves_say_where_nothing_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "new" / "curves.png"
    plots.draw_curves(path, [means("JPEG", psnr=20.0, ssim=0.5, identity=math.nan)], "one")
    without = path.read_bytes()
    plots.draw_curves(path, [means("JPEG", psnr=20.0, ssim=0.5, identity=0.3)], "one")
    for data in (without, path.read_bytes()):
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert without != path.read_bytes()


# --- fairness ---


def group_records() -> list[measure.Record]:
    """Two groups of three and two faces; ours loses two of the first and one of the second."""
    distances = {
        "A": {measure.OURS: (0.7, 0.6, 0.2), measure.OURS_FAITHFUL: (0.3, 0.3, 0.3)},
        "B": {measure.OURS: (0.6, 0.1), measure.OURS_FAITHFUL: (0.5, 0.1)},
    }
    for codecs in distances.values():
        faces = len(codecs[measure.OURS])
        codecs |= {"JPEG": (0.9,) * faces, "WebP": (0.4,) * faces}
    return [
        record(codec, distance, file=f"{race}{index}", race=race, gender="F", psnr=20.0 + index)
        for race, codecs in distances.items()
        for codec, values in codecs.items()
        for index, distance in enumerate(values)
    ]


def test_groups_are_counted() -> None:
    rows = fairness.group_rows(group_records())
    assert [(row.codec, row.race) for row in rows] == [
        (codec, race)
        for codec in (measure.OURS, measure.OURS_FAITHFUL, "WebP")  # the better peer
        for race in (fairness.EVERYONE, "A", "B")
    ]
    everyone, first, second = rows[:3]
    assert (everyone.faces, everyone.not_same) == (5, 3)
    assert everyone.identity == pytest.approx(0.44)
    assert (first.group, first.faces, first.not_same, first.psnr) == ("A F", 3, 2, 21.0)
    assert first.identity == pytest.approx(0.5)
    assert first.ratio == pytest.approx(0.5 / 0.44)
    assert (second.faces, second.not_same) == (2, 1)
    worst = {row.codec: row.race for row in fairness.worst_groups(rows)}
    assert worst == {measure.OURS: "A", measure.OURS_FAITHFUL: "A", "WebP": "A"}
    assert [row.codec for row in fairness.group_rows(group_records(), ["JPEG"])] == ["JPEG"] * 3


def test_groups_are_compared_at_the_same_ages() -> None:
    of_age, of_group = {"20-29": 0.2, "50-59": 0.3}, {"A": 0.0, "B": 0.02}
    counts = {("A", "20-29"): 9, ("A", "50-59"): 1, ("B", "20-29"): 3, ("B", "50-59"): 7}
    records = [
        record("JPEG", of_group[race] + of_age[age], race=race, gender="F", age=age)
        for (race, age), count in counts.items()
        for _ in range(count)
    ]
    records.append(record("JPEG", race="B", gender="F", age="50-59", face="none"))
    everyone, first, second = fairness.group_rows(records, ["JPEG"])
    assert first.ratio == pytest.approx(0.21 / 0.25) and second.ratio == pytest.approx(0.29 / 0.25)
    # 12 of 20 faces are young
    assert everyone.same_ages == 1
    assert first.same_ages == pytest.approx(0.24 / 0.25)
    assert second.same_ages == pytest.approx(0.26 / 0.25)
    assert fairness.table([first])[0]["at everyone's ages"] == "0.96x"
    unknown = [*records, record("JPEG", 0.3, race="B", gender="F")]
    rows = fairness.group_rows(unknown, ["JPEG"])
    assert all(math.isnan(row.same_ages) for row in rows)
    assert "at everyone's ages" not in fairness.table(rows)[0]


def test_groups_keep_to_their_target() -> None:
    rows = fairness.group_rows(group_records())
    line = fairness.verdict_line(rows, targets.TARGETS)
    assert line.startswith("targets: 300 B FaSDiff-Edge missed by 1 (at most 2 of 3 faces")
    assert "300 B FaSDiff-Edge, realism 0 met by 1 (at most 0 of 3" in line
    assert fairness.verdict_line(rows, {}).startswith("targets: none")


def test_fairness(faces: Path, tmp_path: Path, capsys) -> None:
    arguments = ["--data", str(faces), "--split", "val", "--size", "64", "--bytes", "300"]
    arguments += ["--peers", "JPEG", "--results", str(tmp_path)]
    per_image = tmp_path / "per_image.tsv"
    arguments += ["--per-image", str(per_image)]
    assert fairness.main(arguments) == 0
    rows = read_tsv(tmp_path / "val-64-groups.tsv")
    assert list(rows[0]) == [
        field.name for kind in (measure.Run, fairness.GroupRow) for field in fields(kind)
    ]
    assert [(row["race"], row["gender"], row["images"]) for row in rows[:3]] == [
        ("all", "", "3"),
        ("X", "Female", "2"),
        ("Y", "Male", "1"),
    ]
    printed = capsys.readouterr().out
    assert "| 300 B | FaSDiff-Edge | X | Female |" in printed
    assert "worst at 300 B, FaSDiff-Edge:" in printed
    assert "targets: none" in printed
    with pytest.raises(SystemExit):
        fairness.main(["--records", str(per_image), "--codecs", "GIF"])
    assert "not measured: GIF" in capsys.readouterr().err


# --- tables ---


def test_tables(tmp_path: Path) -> None:
    rows = [{"name": "a", "value": 1 / 3}, {"name": "b", "value": 2}]
    tables.write_tsv(tmp_path / "new" / "t.tsv", rows)
    assert (tmp_path / "new" / "t.tsv").read_text() == "name\tvalue\na\t0.33333\nb\t2\n"
    assert tables.markdown(rows).splitlines() == [
        "| name | value |",
        "| :-- | --: |",
        "| a | 0.33333 |",
        "| b | 2 |",
    ]


# --- realism ---


class FewFeatures:
    """Stands in for EfficientNet-Lite2, which is not installed everywhere."""

    def __call__(self, image: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        small = cv2.resize(image, (8, 8), interpolation=cv2.INTER_AREA).transpose(2, 0, 1) / 255.0
        edges = np.abs(np.diff(image.astype(float), axis=1)).mean((0, 1))
        return [small, small[:, ::2, ::2]], np.concatenate([small.mean((1, 2)), edges])


def test_perceptual_distance_is_summed_over_channels_and_averaged_over_space() -> None:
    a, b = np.zeros((2, 3, 3)), np.zeros((5, 2, 2))
    assert realism.perceptual_distance([a, b], [a, b]) == 0
    assert realism.perceptual_distance([a + 1, b], [a, b + 2]) == pytest.approx(2 + 5 * 4)


def test_the_kernel_distance_is_unbiased() -> None:
    rng = np.random.default_rng(0)
    same = [realism.kernel_distance(*rng.normal(0, 1, (2, 12, 3))) for _ in range(400)]
    error = np.std(same) / math.sqrt(len(same))
    assert abs(np.mean(same)) < 3 * error
    x, y = rng.normal(0, 1, (200, 3)), rng.normal(0.8, 1, (200, 3))
    assert realism.kernel_distance(x, y) > 20 * error
    once = np.ones(200, np.int64)
    assert realism.kernel_distance(x, y, once) == pytest.approx(realism.kernel_distance(x, y))
    assert realism.kernel_distance(x, y, 3 * once) == pytest.approx(realism.kernel_distance(x, y))


def test_the_frechet_distance_of_normal_distributions() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (4000, 3))
    assert realism.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert realism.frechet_distance(x, x + [1, 0, 2]) == pytest.approx(5)
    # standard deviations of 1 and 3: (3 - 1)^2 for each axis
    assert realism.frechet_distance(x, 3 * x) == pytest.approx(12, rel=0.1)
    counts = np.zeros(4000, np.int64)
    counts[:100] = 2
    expected = realism.frechet_distance(np.repeat(x[:100], 2, 0), np.repeat(2 * x[:100], 2, 0))
    assert realism.frechet_distance(x, 2 * x, counts) == pytest.approx(expected)


def test_an_interval_covers_the_mean() -> None:
    values = np.random.default_rng(1).normal(5, 2, 100)
    low, high = realism.interval(lambda n: float((n * values).sum() / n.sum()), 100)
    assert low < values.mean() < high
    assert high - low == pytest.approx(4 * 2 / math.sqrt(100), rel=0.25)


def test_realism_of_every_codec(
    face: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(realism, "Features", FewFeatures)
    (tmp_path / "faces").mkdir()
    for index, image in enumerate((face, blurred(face, 1.0), face[:, ::-1])):
        picture = write_picture(np.ascontiguousarray(image), ".png")
        (tmp_path / "faces" / f"{index}.png").write_bytes(picture)
    arguments = ["--data", str(tmp_path / "faces"), "--results", str(tmp_path), "--peers", "JPEG"]
    dials = ["--realism", "0,1", "--steps", "1,2"]
    assert realism.main([*arguments, "--bytes", "600", *dials]) == 0
    rows = read_tsv(tmp_path / "faces-native-realism.tsv")
    assert [row["codec"] for row in rows] == [
        "FaSDiff-Edge, realism 0", "FaSDiff-Edge, realism 1", "FaSDiff-Edge, realism 1, 2 steps",
        "JPEG",
    ]  # fmt: skip
    assert cv2.imread(str(tmp_path / "faces-native-realism.png")) is not None
    for row in rows:
        assert row["images"] == "3" and 300 < float(row["mean_bytes"]) <= 600
        for name in ("perceptual", "kernel", "frechet"):
            low, high = float(row[f"{name}_low"]), float(row[f"{name}_high"])
            assert low <= high
        assert 0 < float(row["dlib"]) < 1.4 and float(row["ssimulacra2"]) < 90
    assert float(rows[3]["perceptual"]) > float(rows[0]["perceptual"]) > 0
    assert "1.00x" in capsys.readouterr().out
    assert realism.main([*arguments, "--limit", "1"]) == 1


# --- the figures of a release ---
TWO_TABLES = """Some text.

<!-- here -->
One:

| a | b |
| :-- | --: |
| x | 1 |
| y | 2 |

Two, the same:

| a | b |
| :-- | --: |
| x | 1 |
| y | 2 |

The end.
"""


def test_tables_after_a_mark_are_replaced_in_order() -> None:
    first, second = ["| c |", "| --- |", "| 3 |"], ["| d |", "| --- |"]
    text = release.replace_tables(TWO_TABLES, "here", [first, second])
    assert release.tables_in(text) == [first, second]
    assert [line for line in text.splitlines() if "|" not in line] == [
        line for line in TWO_TABLES.splitlines() if "|" not in line
    ]
    only_first = release.replace_tables(TWO_TABLES, "here", [first])
    assert release.tables_in(only_first) == [first, release.tables_in(TWO_TABLES)[1]]
    with pytest.raises(ValueError, match="2 tables instead of 3"):
        release.replace_tables(TWO_TABLES, "here", [first] * 3)
    with pytest.raises(ValueError, match="no mark there"):
        release.replace_tables(TWO_TABLES, "there", [first])


def test_rows_of_a_table_are_chosen_by_their_cells() -> None:
    table = release.tables_in(TWO_TABLES)[0]
    assert release.chosen(table, lambda row: row == ["y", "2"]) == [*table[:2], "| y | 2 |"]


def test_groups_have_a_column_for_each_budget(tmp_path: Path) -> None:
    rows = [
        {"budget": budget, "codec": codec, "race": race, "gender": "", "images": "5"}
        | {"identity": str(identity), "not_same": str(lost)}
        for budget, lost in (("300 B", 1), ("500 B", 0))
        for race, identity in (("all", 0.25), ("Black", 0.2))
        for codec in (measure.OURS_FAITHFUL, "WebP")
    ]
    tables.write_tsv(tmp_path / "groups.tsv", rows)
    assert release.group_table(tmp_path / "groups.tsv") == [
        "| race | gender | faces | 300 B | 500 B | at 0.6 or more, at any |",
        "| :-- | :-- | --: | --: | --: | --: |",
        "| all |  | 5 | 0.250 | 0.250 | 1 |",
        "| Black |  | 5 | 0.200 | 0.200 | 1 |",
    ]


def test_the_documents_have_room_for_every_table(tmp_path: Path) -> None:
    """With tables of one row in place of the measured ones."""
    root = Path(__file__).resolve().parent.parent
    kinds = {"rate_distortion": 3, "realism": 1, "fairness": 3}
    for name, what in release.MEASUREMENTS.items():
        folder = tmp_path / "results" / name
        folder.mkdir(parents=True)
        head = f"| {name} | metric |\n| :-- | :-- |\n| WebP | PSNR |"
        (folder / "tables.md").write_text("\n\n".join([head] * kinds[what.program]))
    groups = "codec\tbudget\trace\tgender\timages\tidentity\tnot_same\n"
    row = f"{measure.OURS_FAITHFUL}\t300 B\tall\t\t5\t0.25\t0\n"
    (tmp_path / "results" / "val-700" / "val-256-groups.tsv").write_text(groups + row)
    for document in ("README.md", "MODEL_CARD.md"):
        (tmp_path / document).write_text((root / document).read_text(encoding="utf-8"))
    release.fill(tmp_path, tmp_path / "results")
    readme = release.tables_in((tmp_path / "README.md").read_text(encoding="utf-8"))
    heads = [table[0] for table in readme]
    names = ("val-140", "val-42", "portrait-20", "val-14-bpp", "realism")
    assert heads[:5] == [f"| {name} | metric |" for name in names]
    assert len(readme) == len(release.tables_in((root / "README.md").read_text(encoding="utf-8")))
    card = release.tables_in((tmp_path / "MODEL_CARD.md").read_text(encoding="utf-8"))
    assert [table[0] for table in card[-7:]] == [
        f"| {name} | metric |"
        if name != "groups"
        else "| race | gender | faces | 300 B | at 0.6 or more, at any |"
        for name in (
            "val-140",
            "groups",
            "val-42",
            "portrait-20",
            "realism",
            "val-14-bpp",
            "portrait-8-bpp",
        )
    ]


def test_times_are_of_the_reports_in_their_order(tmp_path: Path) -> None:
    times = {"encode": {"median": 11.35, "p95": 12.0}, "decode": {"median": 9.727, "p95": 10.61}}
    rest = {"precision": "int8", "size": 256, "bytes": 491, "steps": 1, "cold_start_ms": 479.7}
    for name, engine in (("b", "openvino"), ("a", "onnxruntime")):
        results = [{"engine": engine, "peak_mb": 196.8, **times, **rest}]
        (tmp_path / name).write_text(json.dumps({"results": results}))
    table = release.latency_table([tmp_path / "b", tmp_path / "a"])
    cells = "INT8 | 256x256 | 491 | 1 | 11.3 (12.0) ms | 9.7 (10.6) ms | 480 ms | 197 MB |"
    assert table[2:] == [f"| OpenVINO | {cells}", f"| ONNX Runtime | {cells}"]
