"""A source without usable inputs is rejected before any work, with what was found, where, and the fix."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.images import write, write_tar
from thousandwords.ingest import sources
from thousandwords.ingest.sources.base import SourceError

NO_TEXT, NO_BYTES = pa.array([None], pa.string()), pa.array([], pa.binary())
NO_IMAGES, NO_CAPTIONS = {"image": NO_BYTES, "caption": NO_TEXT[:0]}, {"image": ["a.png"], "caption": NO_TEXT}
COCO_IMAGE = '{"images": [{"id": 1, "file_name": "a.png"}], "annotations": '

CASES = {  # source -> its content (None: nothing is there), and the message
    sources.FolderSource: [
        (None, "there is no folder .*own. Create it, or set another"),
        ({"a.txt": "a", "b.heic": b"x"}, "has no images .png, jpg.*the format of b.heic is not read. Convert such files to JPEG or"),
        ({"a.png": b"x", "b.png": b"x"}, "None of the 2 images in .*own has a caption. Put a text file of the same"),
    ],
    sources.CsvSource: [
        (None, "there is no table .*own. Set it to your .csv or .tsv file"),
        ("", "has no column 'image', only none. Set data.image_column"),
        ("file,caption\na,a\n", "has no column 'image', only 'file', 'caption'. Set data.image_column"),
        ("image,text\na,a\n", "has no column 'caption', only 'image', 'text'. Set data.caption_column"),
        ("image,caption\n", "has no row with an image and a caption"),
        ("image,caption\na.png,\n", "has no captions: its column 'caption' is empty"),
        ('image,caption\na,a\nb,"open\nc,c\n', "own, line 4: unexpected end of data. Fix the quotes"),
        ("image,caption\n" + "x" * 1_000_000, "own, line 2: over 1,000,000 bytes. Check that it is a table"),
    ],
    sources.JsonLinesSource: [
        (None, "data.path: there is no file .*own. Set it to your .jsonl file"),
        ("", "own has no line with the key 'image', only none. Set data.image_column"),
        ('{"url": "x", "text": ""}', "no line with the key 'image', only 'text', 'url'. Set data.image_column"),
        ('{"image": "", "caption": "y"}', "has no row with an image and a caption. Add one per image"),
        ('{"image": "a"}', "has no captions: 'caption' of every line is empty. Fill it, or set data.caption_column"),
    ],
    sources.CocoSource: [
        (None, "data.path: there is no file .*own. Set it to your captions .json"),
        ('{"images": [], "anno', "own is not a COCO JSON, or is truncated .*. Fetch it again"),
        ("[1]", "own is not a COCO JSON, or is truncated .it is list, not an object.. Fetch it again"),
        ("[" * 100_000, "own is not a COCO JSON, or is truncated"),
        (b"\xff\xfe", "own is not a COCO JSON, or is truncated"),
        ('{"images": {}}', "own has no list 'images', unlike COCO captions. Set data.path to the captions"),
        ('{"images": [], "annotations": []}', "own has no row with an image and a caption"),
        (COCO_IMAGE + '[{"image_id": 1, "bbox": []}]}', "has no row with an image and"),
        (COCO_IMAGE + '[{"image_id": 1, "caption": " "}]}', "the caption of each annotation is empty. Use the file of captions, not"),
    ],
    sources.ParquetSource: [
        (None, "data.path: there is no .parquet file at .*own. Set it to one, or to a folder of them"),
        (NO_IMAGES, "own has no rows. Fetch it again"),
        ({"url": ["x"], "caption": ["a"]}, "has no column 'image', only 'url', 'caption'. Set data.image_column"),
        ({"image": [b"x"], "text": ["a"]}, "has no column 'caption', only 'image', 'text'. Set data.caption_column"),
        ({"image": [1], "caption": ["a"]}, "'image' holds int64, not images. Set data.image_column"),
        ({"image": [{"bytes": "x"}], "caption": ["a"]}, "holds struct<bytes: string>, not images"),
        ({"image": [b"x"], "caption": [7]}, "holds int64, not text or lists of texts. Set data.caption_column"),
        ({"image": [b"x"], "caption": [[7]]}, "holds list<element: int64>, not text or lists of texts"),
        ({"image": [b"x"], "caption": [" "]}, "own has no captions: its column 'caption' is empty. Fill it"),
        (NO_CAPTIONS, "own has no captions: its column 'caption'"),
        ({"image": NO_TEXT, "caption": ["x"]}, "own has no row with an image and a caption"),
    ],
    sources.WebDatasetSource: [
        (None, "data.path: there is no .tar file at .*own. Set data.path to a tar, or a folder of tars"),
        ([], "The 1 tars at .* have no images"),
        ([("a.txt", b"x")], "have no images. Pack images and captions under the same name"),
        ([("a.png", b"x"), ("b.cls", b"1")], "The 1 tars at .* have no captions. Pack a text or JSON with each image"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "content", "message"), [(kind, *case) for kind in CASES for case in CASES[kind]]
)
def test_a_source_without_usable_inputs_is_rejected_with_the_fix(tmp_path, kind, content, message):
    path = tmp_path / "own"
    if kind is sources.FolderSource and content:
        write(path, content)
    elif kind is sources.ParquetSource and content:
        pq.write_table(pa.table(content), path)
    elif kind is sources.WebDatasetSource and content is not None:
        write_tar(path, content)
    elif content is not None:
        write(tmp_path, {"own": content})
    with pytest.raises(SourceError, match=message):
        kind(path).check()


def test_a_tar_in_a_folder_that_does_not_exist_is_rejected_with_the_fix(tmp_path):
    with pytest.raises(SourceError, match="data.path: there is no .tar file at .*x.tar. Set data.path"):
        sources.WebDatasetSource(tmp_path / "nowhere/x.tar").check()
