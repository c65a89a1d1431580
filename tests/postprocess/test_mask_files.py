"""Files of masks: the table of forms, and converting results and annotations."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mrcnn_tf.geometry import forms
from mrcnn_tf.postprocess.mask_files import convert_masks, format_masks, measure_masks

SIZES = {1: (40, 50), 2: (30, 60)}


def blob(seed, height, width):
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[:height, :width]
    dense = np.hypot(yy - rng.uniform(0, height), xx - rng.uniform(0, width)) < rng.uniform(4, 15)
    dense[:: seed + 7, 3] ^= True
    return dense


@pytest.fixture
def results(tmp_path):
    """Eight masks on two images, one of them empty, and a box without a mask, as compressed codes."""
    entries = []
    for i in range(8):
        image_id = i % 2 + 1
        dense = blob(i, *SIZES[image_id]) if i != 5 else np.zeros(SIZES[image_id], bool)
        code = coco_mask.encode(np.asfortranarray(dense.astype(np.uint8)))
        entry = {"image_id": image_id, "category_id": 3, "score": 0.5, "bbox": [1, 2, 3, 4], "extra": [i]}
        entries.append({**entry, "segmentation": {"size": code["size"], "counts": code["counts"].decode()}})
    entries.append({"image_id": 1, "category_id": 3, "score": 0.25, "bbox": [0, 0, 5, 5]})
    path = tmp_path / "results.json"
    path.write_text(json.dumps(entries))
    return path


@pytest.fixture
def annotations(tmp_path):
    """Polygons, a crowd region as uncompressed counts, and a box without a mask."""
    crowd = forms.encode((blob(3, *SIZES[2]), 0, 0), "rle-uncompressed", SIZES[2])
    segmentations = [[[5, 5, 25.5, 5, 25.5, 20], [30, 30, 40, 30, 40, 38, 30, 38]], crowd, []]
    rows = [
        {
            "id": i + 1,
            "image_id": i % 2 + 1,
            "category_id": 3,
            "bbox": [1, 2, 9, 9],
            "area": 81,
            "iscrowd": int(i == 1),
        }
        | {"segmentation": segmentation}
        for i, segmentation in enumerate(segmentations)
    ]
    images = [{"id": i, "height": h, "width": w, "file_name": f"{i}.png"} for i, (h, w) in SIZES.items()]
    path = tmp_path / "annotations.json"
    path.write_text(
        json.dumps({"images": images, "annotations": rows, "categories": [{"id": 3, "name": "thing"}]})
    )
    return path


class TestConvert:
    @pytest.mark.parametrize("form", ["rle-uncompressed", "polygons", "packed-bits"])
    def test_there_and_back_is_the_same_file(self, results, annotations, tmp_path, form):
        away, back = tmp_path / "away.json", tmp_path / "back.json"
        told = convert_masks(results, form, away)
        assert told == {
            "masks": 8, "without": 1, "empty": 1, "lost": 0, "iou": 1.0, "worst_iou": 1.0, "worst_deviation": 0.0,
        }  # fmt: skip
        assert {
            forms.form_of(e["segmentation"]) for e in json.loads(away.read_text()) if "segmentation" in e
        } == {form}
        convert_masks(away, "rle", back, annotations=annotations)
        assert json.loads(back.read_text()) == json.loads(results.read_text())

    def test_losses_are_told(self, results, tmp_path):
        told = convert_masks(results, "box-mask", tmp_path / "out.json", mask_size=2)
        pairs = zip(
            json.loads(results.read_text())[:8], json.loads((tmp_path / "out.json").read_text()), strict=False
        )
        ious = [forms.compare(*(forms.decode(e["segmentation"]) for e in pair))[0] for pair in pairs]
        assert told["worst_iou"] == min(ious) < 0.95
        assert told["iou"] == pytest.approx(np.mean(ious))
        assert told["worst_deviation"] > 1

    def test_annotations(self, annotations, tmp_path):
        out = tmp_path / "out.json"
        told = convert_masks(annotations, "rle", out)
        assert (told["masks"], told["without"]) == (2, 1)
        before, after = json.loads(annotations.read_text()), json.loads(out.read_text())
        assert after["images"] == before["images"]
        polygons, crowd, nothing = after["annotations"]
        want = coco_mask.merge(coco_mask.frPyObjects(before["annotations"][0]["segmentation"], *SIZES[1]))
        assert polygons["segmentation"] == {"size": [40, 50], "counts": want["counts"].decode()}
        assert (
            crowd["segmentation"]["counts"]
            == coco_mask.frPyObjects(before["annotations"][1]["segmentation"], *SIZES[2])["counts"].decode()
        )
        assert nothing == before["annotations"][2]  # an empty list is "no mask", not an empty mask
        assert {k: v for k, v in crowd.items() if k != "segmentation"} == {
            k: v for k, v in before["annotations"][1].items() if k != "segmentation"
        }

    def test_onto_itself(self, results):
        before = json.loads(results.read_text())
        convert_masks(results, "rle", results)
        assert json.loads(results.read_text()) == before

    def test_damage_leaves_no_file(self, results, tmp_path):
        entries = json.loads(results.read_text())
        entries[3]["segmentation"]["counts"] = "1:"
        results.write_text(json.dumps(entries))
        with pytest.raises(ValueError, match=r"results.json: entry 3: a run-length code of size .* damaged"):
            convert_masks(results, "polygons", tmp_path / "out.json")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["results.json"]

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            (["x"], "entry 0 is not an object"),
            ({"image_id": [1]}, "entry 0 is not an object with an 'image_id', a number or a text"),
            ({"score": 1}, "entry 0 is not an object with an 'image_id'"),
            (
                {"image_id": 1, "segmentation": [[0, 0, 4, 0, 4, 4]]},
                "entry 0 has polygons.*give --annotations",
            ),
            ({"image_id": 1, "segmentation": {"size": [4, 4]}}, "entry 0: .* is no segmentation"),
        ],
    )
    def test_wrong_entries(self, tmp_path, entry, message):
        path = tmp_path / "wrong.json"
        path.write_text(json.dumps([entry]))
        with pytest.raises(ValueError, match=message):
            convert_masks(path, "rle", tmp_path / "out.json")

    def test_wrong_images(self, results, annotations, tmp_path):
        results.write_text(results.read_text().replace('"image_id": 2', '"image_id": 9'))
        with pytest.raises(
            ValueError, match="entry 1 has image_id 9, of which .*annotations.json tells no height"
        ):
            convert_masks(results, "rle", tmp_path / "out.json", annotations=annotations)
        results.write_text(results.read_text().replace('"image_id": 9', '"image_id": 1'))
        with pytest.raises(ValueError, match="belongs to another image"):
            convert_masks(results, "rle", tmp_path / "out.json", annotations=annotations)
        annotations.write_text(annotations.read_text().replace('"height": 30', '"height": null'))
        with pytest.raises(
            ValueError, match="annotation 2 has image_id 2, of which the file tells no height"
        ):
            convert_masks(annotations, "rle", tmp_path / "out.json")

    @pytest.mark.parametrize(
        ("coco", "message"),
        [
            ({"images": []}, "'annotations' must be a list of objects with 'image_id'"),
            ({"images": [3], "annotations": []}, "'images' must be a list of objects with 'id'"),
            ({"images": [], "annotations": [{"image_id": {}}]}, "'annotations' must be a list"),
            ({"annotations": []}, "not COCO annotations"),
        ],
    )
    def test_wrong_annotation_files(self, tmp_path, coco, message):
        path = tmp_path / "wrong.json"
        path.write_text(json.dumps(coco))
        with pytest.raises(ValueError, match=f"wrong.json: .*{message}"):
            convert_masks(path, "rle", tmp_path / "out.json")

    def test_files_that_are_not_there_and_forms_that_are_not(self, results, tmp_path):
        with pytest.raises(FileNotFoundError, match="gone.json: no such file"):
            convert_masks(tmp_path / "gone.json", "rle", tmp_path / "out.json")
        with pytest.raises(ValueError, match="no form 'png'"):
            convert_masks(results, "png", tmp_path / "out.json")


class TestMeasure:
    def test_means_and_worst_of_every_form(self, results):
        report = measure_masks(results, tolerances=[0, 2], mask_sizes=[6])
        assert (report["masks"], report["empty"], report["source"]) == (8, 1, {"rle": 8})
        rows = {(row["form"], row["setting"]): row for row in report["rows"]}
        assert list(rows) == [
            ("rle", ""),
            ("rle-uncompressed", ""),
            ("polygons", "exact"),
            ("polygons", "2 px"),
            ("box-mask", "6 x 6"),
            ("packed-bits", ""),
        ]
        assert rows["rle", ""]["json_bytes"] == report["source_bytes"]
        for key, row in rows.items():
            if key not in (("polygons", "2 px"), ("box-mask", "6 x 6")):
                assert (row["worst_iou"], row["worst_deviation"], row["lost"]) == (1, 0, 0)
        entries = json.loads(results.read_text())[:8]
        crops = [(forms.decode(e["segmentation"]), SIZES[e["image_id"]]) for e in entries]
        measured = [forms.measure(crop, "box-mask", size, mask_size=6) for crop, size in crops]
        rough = rows["box-mask", "6 x 6"]
        assert rough["worst_iou"] == min(m["iou"] for m in measured)
        assert rough["deviation"] == pytest.approx(np.mean([m["deviation"] for m in measured]))

    def test_what_is_lost_is_counted(self, tmp_path):
        # One cell over two far pixels holds 2/100 of its area.
        dense = np.zeros((10, 10), np.uint8)
        dense[0, 0] = dense[9, 9] = 1
        code = coco_mask.encode(np.asfortranarray(dense))
        path = tmp_path / "one.json"
        entry = {"image_id": 1, "segmentation": {"size": [10, 10], "counts": code["counts"].decode()}}
        path.write_text(json.dumps([entry]))
        row = measure_masks(path, tolerances=[], mask_sizes=[1])["rows"][2]
        assert (row["lost"], row["iou"], row["deviation"]) == (1, 0, 0)
        assert convert_masks(path, "box-mask", path, mask_size=1)["lost"] == 1

    def test_the_first_masks(self, annotations):
        assert measure_masks(annotations)["source"] == {"polygons": 1, "rle-uncompressed": 1}
        assert measure_masks(annotations, first=1)["source"] == {"polygons": 1}
        with pytest.raises(ValueError, match="at least 1, not 0"):
            measure_masks(annotations, first=0)

    def test_no_masks(self, tmp_path):
        path = tmp_path / "boxes.json"
        path.write_text(json.dumps([{"image_id": 1, "bbox": [0, 0, 1, 1]}]))
        with pytest.raises(ValueError, match="boxes.json: holds no masks"):
            measure_masks(path)

    def test_the_table(self, results):
        lines = format_masks(measure_masks(results, tolerances=[0.5])).splitlines()
        assert lines[0].startswith("8 masks (8 rle; 1 empty)")
        assert [line.split()[0] for line in lines[4:]] == [
            "rle", "rle-uncompressed", "polygons", "box-mask", "box-mask", "packed-bits",
        ]  # fmt: skip
        assert len({len(line) for line in lines[3:]}) == 1
        assert len(lines[3]) <= 110
