from pathlib import Path

import pytest
import yaml

from mrcnn_tf.config import ConfigError, dump_config, load_config, make_config, selection_settings
from mrcnn_tf.schema import Config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configs_load(path):
    config = load_config(path)
    assert path.stem in ("base", config.name)
    # What is written to the run folder reads back as the same config.
    assert make_config(yaml.safe_load(dump_config(config))) == config


def test_base_file_has_every_key_with_its_default_and_an_explanation():
    text = (CONFIGS / "base.yaml").read_text()
    values = yaml.safe_load(text)

    def keys(section, prefix=""):
        for key, value in section.items():
            if isinstance(value, dict):
                yield from keys(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}"

    default = Config().model_dump(mode="json", by_alias=True)
    assert sorted(keys(values)) == sorted(keys(default))
    assert make_config(values) == Config()
    for line in text.splitlines():
        key, _, rest = line.partition(":")
        if rest.strip() and not line.strip().startswith("#"):
            assert "# " in rest, f"{key.strip()} is not explained"


def test_inheritance_and_overrides(tmp_path):
    (tmp_path / "a.yaml").write_text("name: a\ntrain: {steps: 10, warmup_steps: 2, milestones: [5, 8]}\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\nname: b\ntrain: {batch_size: 4, milestones: [6]}\n")
    config = load_config(
        tmp_path / "b.yaml", ["train.batch_size=8", "data.flip=false", "train.clip_norm=null"]
    )
    assert (config.name, config.train.steps, config.train.batch_size) == ("b", 10, 8)
    assert config.train.milestones == [6]  # a list replaces the base's
    assert config.data.flip is False and config.run_folder == Path("runs/b")


@pytest.mark.parametrize(
    "values,message",
    [
        ({"trian": {}}, r"trian: unknown key; there are name, .*train"),
        ({"train": {"batchsize": 4}}, r"train\.batchsize: unknown key; there are steps, batch_size"),
        ({"train": {"batch_size": "four"}}, r"train\.batch_size: .*integer.*not 'four'"),
        ({"train": {"batch_size": 0}}, r"train\.batch_size: .*greater than or equal to 1, not 0"),
        ({"model": {"backbone": {"depth": 51}}}, r"model\.backbone\.depth: .*18, 34, 50, 101 or 152, not 51"),
        (
            {"model": {"loss_weights": {"masks": 1}}},
            r"model\.loss_weights\.masks: unknown key; .*class, box, mask",
        ),
        ({"model": {"min_size": 900, "max_size": 800}}, r"model\.min_size is 900, above max_size 800"),
        ({"model": {"roi_fg_iou": 0.4}}, r"model\.roi_bg_iou is 0\.5, above roi_fg_iou 0\.4"),
        ({"model": {"min_proposals": 5}}, r"model\.min_proposals acts only with proposal_source truth"),
        (
            {"model": {"backbone": {"weights": "imagenet"}}},
            r"model\.backbone\.weights imagenet .*dialect keras",
        ),
        ({"data": {"canvas": [100, 128]}}, r"data\.canvas .* multiples of 32"),
        ({"data": {"canvas": [512, 512]}}, r"data\.canvas .* too small"),
        ({"data": {"generated": {}, "train": {"annotations": "a"}}}, r"data\.generated and train paths"),
        ({"train": {"warmup_steps": 100, "steps": 50}}, r"train\.warmup_steps is 100, not below steps 50"),
        ({"train": {"milestones": [8, 5]}}, r"train\.milestones .* must rise"),
    ],
)
def test_mistakes_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        make_config(values, source="x.yaml")


def test_all_mistakes_at_once():
    with pytest.raises(ConfigError) as error:
        make_config({"train": {"batchsize": 4, "steps": "x"}})
    assert len(str(error.value).splitlines()) == 2


def test_files_that_are_no_configs(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: no such config file"):
        load_config(tmp_path / "none.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("train: [1, 2\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml: not YAML"):
        load_config(bad)
    bad.write_text("- a\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml: must hold keys and values"):
        load_config(bad)
    bad.write_text("base: bad.yaml\n")
    with pytest.raises(ConfigError, match="leads back"):
        load_config(bad)
    bad.write_text("name: x\n")
    with pytest.raises(ConfigError, match="must look like"):
        load_config(bad, ["train.batch_size"])


@pytest.mark.parametrize("size", [50, 101])
def test_report_recipe(size):
    """Every item of the course report's recipe (DESIGN, section 4)."""
    config = load_config(CONFIGS / f"mask_rcnn_r{size}_fpn_coco_report.yaml")
    train, model, data = config.train, config.model, config.data
    assert (train.optimizer, train.schedule, train.weight_decay) == ("adamw", "cosine", 1e-4)
    assert train.learning_rate == 5e-4 and train.batch_size == 16 and train.clip_norm
    assert (
        config.precision == "mixed_float16" and data.flip and data.colour_jitter and data.train.first == 50000
    )
    assert model.rpn.channels == 512 and len(model.rpn.anchor_sizes[0]) * len(model.rpn.aspect_ratios) == 9
    assert model.proposal_source == "truth" and model.min_proposals == 15 and model.backbone.depth == size
    assert (model.rpn_class_loss, model.class_loss) == ("sigmoid_focal", "sigmoid_focal")
    assert (model.box_loss, model.mask_loss) == ("iou", "dice")


def test_detectron_recipe():
    config = load_config(CONFIGS / "mask_rcnn_r50_fpn_coco_1x.yaml")
    train, model = config.train, config.model
    assert (train.steps, train.milestones, train.batch_size, train.learning_rate) == (
        90000,
        [60000, 80000],
        16,
        0.02,
    )
    assert (
        model.backbone.dialect == "caffe2"
        and model.aligned is False
        and model.box_beta == pytest.approx(1 / 9)
    )


def test_settings_of_a_trained_model():
    given = ["model.nms_groups=[[cat, dog]]", "model.nms_threshold=0.6"]
    assert selection_settings(given) == {"nms_groups": [["cat", "dog"]], "nms_threshold": 0.6}
    assert selection_settings([]) == {}
    for text, message in (
        ("train.seed=1", r"train: of a trained model only model\.KEY can be set"),
        ("model=3", "of a trained model only"),
        ("model.nms_threshold=2", "nms_threshold.*less than or equal to 1"),
        ("model.nms_treshold=0.5", "nms_treshold"),
    ):
        with pytest.raises(ConfigError, match=message):
            selection_settings([text])
