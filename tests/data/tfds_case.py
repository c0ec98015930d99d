"""Sets of TFDS on disk, in array_record files, written without TensorFlow; and images to put there."""

import io
import pathlib

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image


def smooth(rng, height, width):
    """An image of soft patches: a little noise, scaled up, so that its scaled versions are alike."""
    small = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, kind="JPEG", **how):
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 90} | how if kind == "JPEG" else how))
    return buffer.getvalue()


def photographs(num, seed=0, low=40, high=90):
    """Encoded images of several sizes."""
    rng = np.random.default_rng(seed)
    return [encoded(smooth(rng, *rng.integers(low, high, 2))) for _ in range(num)]


def write(folder: pathlib.Path, name, splits, classes=3, shards=2, labels=True):
    """Writes a set that `tfds.builder(name, data_dir=folder)` opens; `splits` are lists of encoded images by name.

    Image number i is of class i modulo `classes`. Returns the folder of its files.
    """
    target = folder / name / "1.0.0"
    target.mkdir(parents=True)
    given = {"image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")}
    if labels:
        given["label"] = tfds.features.ClassLabel(names=[f"class {i}" for i in range(classes)])
    features = tfds.features.FeaturesDict(given)
    template = tfds.core.ShardedFileTemplate(data_dir=target, dataset_name=name, filetype_suffix="array_record")
    infos = []
    for split, images in splits.items():
        places = np.array_split(np.arange(len(images)), shards)
        for shard, rows in enumerate(places):
            file = target / f"{name}-{split}.array_record-{shard:05d}-of-{shards:05d}"
            writer = ArrayRecordWriter(str(file), "group_size:1")
            for row in rows:
                example = {"image": io.BytesIO(images[row])}
                writer.write(features.serialize_example(example | ({"label": int(row) % classes} if labels else {})))
            writer.close()
        lengths = [len(rows) for rows in places]
        infos.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=lengths, num_bytes=0, filename_template=template.replace(split=split)
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=target, features=features, split_infos=infos, filename_template=template, check_data=False
    )
    return target
