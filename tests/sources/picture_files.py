"""Files of pictures that tests make, and where real ones lie."""

import io
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from selfloop.component import Context
from selfloop.rng import RandomStream
from selfloop.types import concat_rows

CTX = Context(RandomStream(("seed", 0, "source")))
DATA = Path(__file__).parents[2].parent / "shared" / "data"


def encoded(array, kind="PNG", **options):
    """The bytes of a picture."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def write(path, files):
    """Files by name in a folder, or in a ZIP file where the path ends so."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return path


def all_of(source):
    return concat_rows(list(source.chunks()))


def needs(name):
    return pytest.mark.skipif(not (DATA / name).exists(), reason=f"{name} is not beside the repository")
