"""The benchmarks measure what they say, on scikit-image's astronaut and drawn faces."""

from __future__ import annotations

import csv
import io
import sys
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
import identity
import latency
import metrics
import peers
import tables
import val_table

from fasdiff_edge.imaging import write_picture

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
    found, detected = recogniser.landmarks(face)
    assert detected
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
    with pytest.raises(ValueError, match="no face"):
        recogniser.landmarks(hidden)
    _, detected = recogniser.landmarks(hidden, LANDMARKS)
    assert not detected
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
    small = cv2.resize(face, (96, 96), interpolation=cv2.INTER_AREA)
    for peer in available:
        result = peers.PeerCache(None).fit(peer, small, [1500])[0]
        assert result.fits, peer.name
        assert result.psnr > 22.0, peer.name
        with PIL.Image.open(io.BytesIO(result.data)) as picture:
            assert picture.size == tuple(round(96 * result.scale) for _ in range(2))


def test_cache_remembers_and_gives_the_same(tmp_path: Path, face: np.ndarray) -> None:
    jpeg = peers.available_peers()[0]
    calls = 0

    def encode(image: np.ndarray, quality: float) -> bytes:
        nonlocal calls
        calls += 1
        return jpeg.encode(image, quality)

    counted = peers.Peer(jpeg.name, encode, jpeg.qualities)
    fresh = peers.PeerCache(None).fit(counted, face, [300, 2000])
    cache = peers.PeerCache(tmp_path / "cache")
    first = cache.fit(counted, face, [300])
    made = calls
    assert cache.fit(counted, face, [300])[0].data == first[0].data
    assert calls == made, "the cache searched again"
    both = cache.fit(counted, face, [300, 2000])
    assert calls > made
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
    made = calls
    cache.fit(counted, changed, [300])
    assert calls > made, "another image took this one's entry"


# --- the index, the table ---


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
    assert [face.path.name for face in dataset.load_index(faces, "val")] == [
        "a.png",
        "c.png",
        "b.png",
    ]
    sharp = dataset.load_index(faces, "val", max_sharpness_db=38.0)
    assert [face.path.name for face in sharp] == ["a.png", "c.png"]
    with pytest.raises(ValueError, match="no picture"):
        dataset.load_index(faces, "test")


def test_faces_are_resized_with_their_landmarks(faces: Path, face: np.ndarray) -> None:
    entry = dataset.load_index(faces, "val")[0]
    image, landmarks = entry.load(None)
    assert np.array_equal(image, face)
    assert np.array_equal(landmarks, LANDMARKS)
    half, landmarks = entry.load(128)
    means = face.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
    assert np.abs(half - means).max() <= 0.5
    assert landmarks == pytest.approx((LANDMARKS - 0.5) / 2)


def test_val_table(faces: Path, tmp_path: Path, capsys, face: np.ndarray) -> None:
    results, per_image = tmp_path / "results", tmp_path / "per_image.tsv"
    arguments = ["--data", str(faces), "--size", "128", "--bytes", "400,800", "--limit", "2"]
    arguments += ["--peers", "JPEG,WebP", "--results", str(results), "--per-image", str(per_image)]
    assert val_table.main(arguments) == 0
    rows = read_tsv(results / "val-128.tsv")
    codecs = [val_table.OURS, val_table.OURS_FAITHFUL, "JPEG", "WebP"]
    assert [(int(row["budget"]), row["codec"]) for row in rows] == [
        (budget, codec) for budget in (400, 800) for codec in codecs
    ]
    records = read_tsv(per_image)
    assert len(records) == 2 * len(rows)
    for row in rows:
        members = [
            record
            for record in records
            if (record["codec"], record["budget"]) == (row["codec"], row["budget"])
        ]
        assert row["images"] == "2"
        for name, mean in [("mean_bytes", "bytes"), ("psnr", "psnr"), ("identity", "identity")]:
            values = [float(member[mean]) for member in members]
            assert float(row[name]) == pytest.approx(np.mean(values), rel=1e-3)
        if row["codec"] != "JPEG":
            assert all(int(member["bytes"]) <= int(row["budget"]) for member in members)
    groups = read_tsv(results / "val-128-groups.tsv")
    assert [(group["race"], group["gender"]) for group in groups] == [
        ("X", "Female"),
        ("Y", "Male"),
    ]
    assert "WebP 800 B" in groups[0]
    printed = capsys.readouterr().out
    assert printed.count("| 400 B |") == len(codecs)
    assert "| X | Female |" in printed


def test_ours_is_one_file_decoded_twice(faces: Path, tmp_path: Path) -> None:
    per_image = tmp_path / "per_image.tsv"
    arguments = ["--data", str(faces), "--size", "128", "--bytes", "700", "--limit", "1"]
    arguments += ["--peers", "JPEG", "--results", str(tmp_path), "--per-image", str(per_image)]
    val_table.main(arguments)
    sharp, faithful = read_tsv(per_image)[:2]
    assert (sharp["codec"], faithful["codec"]) == (val_table.OURS, val_table.OURS_FAITHFUL)
    assert sharp["bytes"] == faithful["bytes"]
    assert sharp["psnr"] != faithful["psnr"]


def test_val_table_in_two_processes_gives_the_same(faces: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(faces), "--size", "96", "--bytes", "600", "--peers", "WebP"]
    for jobs in ("1", "2"):
        val_table.main([*arguments, "--jobs", jobs, "--results", str(tmp_path / jobs)])
    first, second = (tmp_path / jobs / "val-96.tsv" for jobs in ("1", "2"))
    assert first.read_bytes() == second.read_bytes()


def test_val_table_names_an_unknown_peer(faces: Path) -> None:
    with pytest.raises(SystemExit, match="no such peer here: GIF"):
        val_table.main(["--data", str(faces), "--peers", "GIF"])


def test_shares_count_what_they_say() -> None:
    def record(file: str, size: int, distance: float) -> val_table.Record:
        nan = float("nan")
        return val_table.Record(
            file, "", "", "JPEG", 300, size, 20.0, 0.5, nan, nan, distance, True
        )

    records = [record("a", 300, 0.59), record("b", 301, 0.6), record("c", 400, 0.9)]
    summary = val_table.summarise(records)[0]
    assert summary.share_over_budget == pytest.approx(2 / 3)
    assert summary.share_not_same == pytest.approx(2 / 3)
    assert summary.identity == pytest.approx((0.59 + 0.6 + 0.9) / 3)
    assert "SSIMULACRA2" not in val_table.table([summary])[0]


# --- latency, tables ---


def test_latency(tmp_path: Path, capsys) -> None:
    arguments = ["--sizes", "64", "--engines", "onnxruntime", "--threads", "1", "--repeats", "2"]
    assert latency.main([*arguments, "--results", str(tmp_path)]) == 0
    (row,) = read_tsv(tmp_path / "latency.tsv")
    assert (row["engine"], row["threads"], row["pixels"]) == ("onnxruntime", "1", "64x64")
    assert 0 < float(row["decode_ms"]) <= float(row["decode_ms_p95"])
    assert float(row["cold_start_ms"]) > float(row["decode_ms"])
    assert 0 < int(row["bytes"]) <= 1000
    assert 20 < float(row["peak_mb"]) < 2000
    assert row["device"]
    assert abs(float(row["bytes"]) - float(row["estimated_bytes"])) <= 2 + 0.01 * float(
        row["bytes"]
    )
    assert "| onnxruntime | 64x64 |" in capsys.readouterr().out


def test_time_calls_counts_only_the_repeats() -> None:
    calls = []
    median, p95 = latency.time_calls(lambda: calls.append(None), 20)
    assert len(calls) == 25
    assert 0 <= median <= p95


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
