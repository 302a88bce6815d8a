"""Folders of images by class: what is taken of them, and what is said of bad ones."""

import collections
import io
import os
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import ExifTags, Image

from nvg_jax.data import folder, pipeline, prepare
from nvg_jax.errors import UserError

RED = (250, 10, 20)


def _save(path, image=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.new("RGB", (9, 12), RED)).save(path, **options)


def _classes(root, **counts):
    """So many images of each class, whose colours are their numbers."""
    for name, count in counts.items():
        for number in range(count):
            _save(
                root / name / f"{number:03}.png", Image.new("RGB", (8 + number, 8), (number,) * 3)
            )
    return root


def _config(root, data_dir, **changes):
    fields = {"dataset": f"folder:{root}", "data_dir": str(data_dir), "num_classes": 2}
    fields |= {"image_size": 8, "resize_ratio": 1.0, "num_workers": 0, "train_split": "train"}
    return ConfigDict(fields | changes)


def _numbers(config, split):
    """How often each label and number, which the colour tells, is in a split, in its order."""
    (batch,) = pipeline.evaluation_batches(config, split, pipeline.num_examples(config, split))
    colours = batch["image"][:, 4, 4, 0]
    return [
        (int(label), int(colour)) for label, colour in zip(batch["label"], colours, strict=True)
    ]


def _rotated(path):
    image = Image.new("RGB", (16, 8), "white")
    image.paste("black", (0, 0, 8, 8))  # Upright, white lies below black.
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = 6
    _save(path, image, exif=exif)


@pytest.mark.parametrize(
    ("image", "name", "encoding", "colour"),
    [
        (Image.new("RGB", (9, 12), RED), "a.jpg", "JPEG", RED),
        (Image.new("RGB", (9, 12), RED), "a.png", "PNG", RED),
        (Image.new("L", (9, 12), 77), "a.png", "PNG", (77, 77, 77)),
        (Image.new("L", (9, 12), 77), "a.JPEG", "JPEG", (77, 77, 77)),
        (Image.new("1", (9, 12), 1), "a.png", "PNG", (255, 255, 255)),
        (Image.new("RGBA", (9, 12), (*RED, 0)), "a.png", "PNG", (255, 255, 255)),
        (Image.new("LA", (9, 12), (77, 255)), "a.png", "PNG", (77, 77, 77)),
        (Image.new("RGB", (9, 12), RED).quantize(4), "a.png", "PNG", RED),
        (Image.new("CMYK", (9, 12), (0, 255, 255, 0)), "a.jpg", "JPEG", (254, 0, 0)),
        (Image.fromarray(np.full((12, 9), 77 * 256, np.uint16)), "a.png", "PNG", (77, 77, 77)),
        (Image.new("RGB", (9, 12), RED), "a.webp", "JPEG", RED),
        (Image.new("RGB", (9, 12), RED), "a.bmp", "PNG", RED),
    ],
)
def test_every_kind_of_image_becomes_plain(tmp_path, image, name, encoding, colour):
    _save(tmp_path / name, image)
    data = folder.encoded(tmp_path / name)
    with Image.open(io.BytesIO(data)) as plain:
        assert plain.format == encoding and plain.mode in ("RGB", "L") and plain.size == (9, 12)
        assert not plain.has_transparency_data
        np.testing.assert_allclose(plain.convert("RGB").getpixel((4, 4)), colour, atol=3)
    with Image.open(tmp_path / name) as original:
        is_plain = original.format == encoding and original.mode in ("RGB", "L")
    assert (data == (tmp_path / name).read_bytes()) == is_plain


def test_the_first_picture_is_taken_and_rotated_ones_are_turned(tmp_path):
    pictures = [Image.new("RGB", (9, 12), colour) for colour in (RED, "blue")]
    _save(tmp_path / "a.gif", pictures[0], save_all=True, append_images=pictures[1:])
    first = Image.open(io.BytesIO(folder.encoded(tmp_path / "a.gif")))
    assert first.convert("RGB").getpixel((0, 0)) == RED
    _rotated(tmp_path / "a.jpg")
    turned = Image.open(io.BytesIO(folder.encoded(tmp_path / "a.jpg")))
    assert turned.size == (8, 16) and turned.getexif().get(ExifTags.Base.Orientation, 1) == 1
    assert turned.getpixel((4, 3))[0] < 20 and turned.getpixel((4, 12))[0] > 235


def test_every_tenth_image_of_a_class_is_held_out(tmp_path):
    root, data_dir = _classes(tmp_path / "pets", dogs=30, cats=21), tmp_path / "datasets"
    prepare.main(["folder", str(root), f"--data_dir={data_dir}"])
    config = _config(root, data_dir)
    train, test = _numbers(config, "train"), _numbers(config, "test")
    assert sorted(test) == [
        *((0, number) for number in (0, 10, 20)),
        *((1, n) for n in (0, 10, 20)),
    ]
    every = [(label, n) for label, count in ((0, 21), (1, 30)) for n in range(count)]
    assert sorted(train + test) == every
    # The order is one that mixes classes and names, so that a slice is a sample.
    assert len({label for label, _ in train[:10]}) == 2 and train != sorted(train)
    builder = pipeline.load_builder(config.dataset, str(data_dir))
    assert builder.info.features["label"].names == ["cats", "dogs"]
    names = {example["file_name"] for example in builder.as_data_source("test")}
    assert b"cats/010.png" in names


def test_splits_are_taken_as_they_are(tmp_path):
    root, data_dir = tmp_path / "pets", tmp_path / "datasets"
    _classes(root / "train", dogs=3, cats=2)
    _classes(root / "validation", dogs=1)
    (root / ".hidden").mkdir()
    prepare.main(["folder", str(root), f"--data_dir={data_dir}"])
    splits = pipeline.load_builder(f"folder:{root}", str(data_dir)).info.splits
    assert {name: split.num_examples for name, split in splits.items()} == {
        "train": 5,
        "validation": 1,
    }
    assert _numbers(_config(root, data_dir), "validation") == [(1, 0)]


def test_train_alone_is_divided(tmp_path):
    tree = folder.Tree.of(_classes(tmp_path / "train", dogs=3, cats=2).parent)
    assert tree.splits["test"] == {"dogs": ["train/dogs/000.png"], "cats": ["train/cats/000.png"]}
    tree.check()


def test_unreadable_images_are_named_skipped_and_counted(tmp_path, caplog):
    root = _classes(tmp_path / "pets", dogs=20, cats=20)
    data = (root / "cats" / "003.png").read_bytes()
    (root / "cats" / "003.png").write_bytes(data[:40])
    (root / "dogs" / "notes.jpg").write_text("no image")
    (root / "dogs" / "nowhere.jpg").symlink_to(tmp_path / "nowhere")
    (root / "dogs" / "phone.heic").write_text("no image by its name")
    (root / "dogs" / "more").mkdir()
    with caplog.at_level("INFO", logger="nvg_jax"):
        prepare.prepare(f"folder:{root}", str(tmp_path / "datasets"))
    skipped = [line for line in caplog.messages if line.startswith("skipped: ")]
    assert len(skipped) == 3 and all(len(line.splitlines()) == 1 for line in skipped)
    for name in ("cats/003.png", "dogs/notes.jpg", "dogs/nowhere.jpg"):
        assert sum(f"{root}/{name}" in line for line in skipped) == 1
    assert "left out, being no image files: folders in classes (1), .heic (1)" in caplog.messages
    assert "train: 35 images of 2 classes, 2 skipped" in caplog.messages
    counts = collections.Counter(
        x for x, _ in _numbers(_config(root, tmp_path / "datasets"), "train")
    )
    assert counts == {0: 17, 1: 18}


def _nothing(root):
    pass


def _file(root):
    root.write_text("")


def _loose(root):
    _save(root / "a.png")


def _empty_class(root):
    _classes(root, cats=3)
    (root / "dogs").mkdir()


def _single(root):
    _classes(root, cats=3, dogs=1)


def _other_splits(root):
    _classes(root / "training", cats=3)
    _classes(root / "test", cats=3)


def _empty_split(root):
    _classes(root / "train", cats=3)
    (root / "test" / "cats").mkdir(parents=True)


def _more_in_test(root):
    _classes(root / "train", cats=3)
    _classes(root / "test", cats=3, dogs=1)


def _odd_split(root):
    _classes(root / "train", cats=3)
    _classes(root / "hold-out", cats=3)


def _odd_class(root):
    _classes(root, **{"cats\ndogs": 3})


def _unreadable(root):
    _classes(root, cats=3)
    for path in (root / "cats").iterdir():
        path.write_text("no image")


def _unreadable_class(root):
    _classes(root, dogs=3)
    _unreadable(root)


def _unreadable_test(root):
    _classes(root, cats=3, dogs=3)
    for path in root.glob("*/000.png"):
        path.write_text("no image")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_nothing, "cannot read folder {root}: No such file or directory"),
        (_file, "cannot read folder {root}: Not a directory"),
        (_loose, "{root} has no folders of images: it has to hold <class>/<image>, or train/<clas"),
        (_empty_class, "{root} has no images of dogs: it has to hold <class>/<image>, or train/"),
        (_single, "{root} has one image of dogs: two are the least, as one is held out"),
        (_other_splits, "{root} has no images for the split train: it has to hold <class>/<image>"),
        (_empty_split, "{root} has no images for the split test: it has to hold <class>/<image>"),
        (_more_in_test, "{root} has no class dogs in train, as in test"),
        (_odd_split, "'hold-out' in {root} is no name of a split: rename it"),
        (_odd_class, r"'cats\\ndogs' in {root} is no name of a class: rename it"),
        (_unreadable, "cannot prepare .*: not one train image of {root} can be read of cats"),
        (_unreadable_class, "cannot prepare .*: not one train image of {root} can be read of cats"),
        (_unreadable_test, "cannot prepare .*: not one test image of {root} can be read of cats"),
    ],
)
def test_folders_that_are_no_dataset(tmp_path, make, message):
    root, data_dir = tmp_path / "photos", tmp_path / "datasets"
    make(root)
    with pytest.raises(SystemExit, match=f"^error: {message.format(root=root)}") as end:
        prepare.main(["folder", str(root), f"--data_dir={data_dir}"])
    assert len(end.value.code.splitlines()) == 1
    assert not list(data_dir.rglob("*.array_record*"))


@pytest.mark.parametrize("arguments", [["folder"], ["folder:"], ["folder", ""]])
def test_the_path_is_missing(arguments):
    with pytest.raises(
        SystemExit, match="^error: the dataset folder has to be named with its path"
    ):
        prepare.main(arguments)


def test_a_path_is_for_folders_alone(capsys):
    with pytest.raises(SystemExit):
        prepare.main(["digits", "photos"])
    assert "error: digits takes no path: leave out photos" in capsys.readouterr().err


def test_what_is_not_prepared_says_the_command(tmp_path):
    root = _classes(tmp_path / "pets", dogs=2)
    with pytest.raises(UserError) as error:
        pipeline.num_examples(_config(root, tmp_path), "train")
    assert f"run `python -m nvg_jax.data.prepare folder {root} --data_dir={tmp_path}`" in str(
        error.value
    )
    with pytest.raises(UserError, match="cannot read folder .*/gone: No such file"):
        pipeline.num_examples(_config(tmp_path / "gone", tmp_path), "train")


def test_too_few_classes_in_the_config(tmp_path):
    root = _classes(tmp_path / "pets", a=2, b=2, c=2)
    prepare.prepare(f"folder:{root}", str(tmp_path))
    with pytest.raises(UserError, match="has 3 classes: set config.data.num_classes, which is 2"):
        pipeline.evaluation_batches(_config(root, tmp_path), "train", 2)


def test_a_folder_is_the_same_however_its_path_is_spelled(tmp_path, monkeypatch):
    root = _classes(tmp_path / "my pets", dogs=3)
    (tmp_path / "link").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = (root, f"{root}/", "my pets", "./my pets/../my pets", "~/my pets", "link")
    places = {pipeline.load_builder(f"folder:{path}", "").data_dir for path in paths}
    assert len(places) == 1 and "/folder_my_pets_" in places.pop()
    other = _classes(tmp_path / "other" / "my pets", dogs=3)
    data_dir = pipeline.load_builder(f"folder:{other}", "").data_dir
    assert data_dir != pipeline.load_builder(f"folder:{root}", "").data_dir


def _add(root):
    _save(root / "dogs" / "new.png")


def _remove(root):
    (root / "dogs" / "001.png").unlink()


def _rename(root):
    (root / "dogs" / "001.png").rename(root / "dogs" / "one.png")


def _alter(root):
    _save(root / "dogs" / "001.png", Image.new("RGB", (64, 64), RED))


def _touch(root):
    os.utime(root / "dogs" / "001.png", (0, 0))


@pytest.mark.parametrize("change", [_add, _remove, _rename, _alter, _touch])
def test_a_change_is_said_once_and_prepared_on_demand(tmp_path, caplog, change):
    root = _classes(tmp_path / "pets", dogs=4, cats=2)
    config = _config(root, tmp_path / "datasets")
    prepared = prepare.prepare(config.dataset, config.data_dir)
    contents = pipeline.contents(config)
    assert pipeline.num_examples(config, "train") == 4 and not caplog.messages
    change(root)
    assert prepare.Folder(config.dataset, config.data_dir).change()
    pipeline._warn_of_change.cache_clear()  # As in another process.
    for _ in range(2):
        assert pipeline.num_examples(config, "train") == 4
    (line,) = caplog.messages
    assert line.startswith(f"{root} has changed since it was prepared, when it held 6 images; now")
    assert f"run `python -m nvg_jax.data.prepare folder {root} --data_dir" in line
    assert prepare.prepare(config.dataset, config.data_dir) == prepared
    assert pipeline.num_examples(config, "train") == {_add: 5, _remove: 3}.get(change, 4)
    assert pipeline.contents(config) != contents and len(caplog.messages) == 1
    assert "is already prepared" in prepare.prepare(config.dataset, config.data_dir)


def test_a_bad_change_leaves_what_is_prepared(tmp_path):
    root = _classes(tmp_path / "pets", dogs=4, cats=2)
    config = _config(root, tmp_path / "datasets")
    prepare.prepare(config.dataset, config.data_dir)
    (root / "cats" / "000.png").unlink()
    with pytest.raises(UserError, match="has one image of cats"):
        prepare.prepare(config.dataset, config.data_dir)
    assert pipeline.num_examples(config, "train") == 4


def test_what_is_prepared_is_read_without_the_folder(tmp_path, caplog):
    root = _classes(tmp_path / "pets", dogs=4, cats=2)
    config = _config(root, tmp_path / "datasets")
    prepare.prepare(config.dataset, config.data_dir)
    shutil.rmtree(root)
    assert sorted(_numbers(config, "train")) == [(0, 1), (1, 1), (1, 2), (1, 3)]
    assert not caplog.messages
    name = pipeline.load_builder(config.dataset, config.data_dir).name
    assert pipeline.num_examples(_config(root, tmp_path / "datasets", dataset=name), "test") == 2


def test_damaged_metadata_is_one_line(tmp_path):
    root = _classes(tmp_path / "pets", dogs=4)
    config = _config(root, tmp_path / "datasets")
    prepare.prepare(config.dataset, config.data_dir)
    (file,) = tmp_path.rglob("metadata.json")
    file.write_text(file.read_text()[:9])
    with pytest.raises(UserError, match="metadata.json is damaged .*: copy it anew") as error:
        pipeline.num_examples(config, "train")
    assert len(str(error.value).splitlines()) == 1
