"""Image files that tests write."""

import io
import zipfile

from PIL import Image

from selfloop.columns import concat_rows
from selfloop.component import Context
from selfloop.rng import RandomStream

CTX = Context(RandomStream(("seed", 0, "source")))


def encode(array, kind="PNG", **options):
    """The bytes of an encoded image."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def write(path, files):
    """Write files by name into a folder, or into a ZIP file if the path ends in .zip."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return path


def read_all(source):
    return concat_rows(list(source.chunks()))
