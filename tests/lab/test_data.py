"""Data sets: downloads that are checked, hostile archives, byte forms and their synthetic twins."""

import gzip
import hashlib
import http.server
import importlib.util
import io
import tarfile
import threading
import zipfile

import numpy as np
import pytest
import scipy.io

from adamw_jax.lab.data import CIFAR10, CIFAR100, cache, cars
from adamw_jax.lab.data.archives import OTHERS, members
from adamw_jax.lab.data.cache import Remote, get
from adamw_jax.lab.tasks.data_set import Split

CONTENT = bytes(range(256)) * 40


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves what the server was told for each path, and notes the requests."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Range")))
        kind, content = self.server.pages[self.path]
        begin = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        if kind == "redirect":
            self.send_response(302)
            self.send_header("Location", content)
            self.end_headers()
            return
        if kind == "missing":
            self.send_error(404)
            return
        ranged = begin and kind != "no ranges"
        self.send_response(206 if ranged else 200)
        if ranged:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        body = content[begin:] if ranged else content
        if kind != "cut":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2 + 1] if kind == "cut" else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server on this machine whose addresses count as secure, and an empty cache folder."""
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.pages, made.asked = {"/file": ("whole", CONTENT)}, []
    made.base = f"http://127.0.0.1:{made.server_port}"
    threading.Thread(target=made.serve_forever, daemon=True).start()
    real = cache.secure
    monkeypatch.setattr(cache, "secure", lambda url: url.startswith(made.base) or real(url))
    monkeypatch.setenv(cache.FOLDER, str(tmp_path))
    monkeypatch.delenv(cache.OFFLINE, raising=False)
    yield made
    made.shutdown()
    made.server_close()


def remote(server, path="/file", content=CONTENT):
    digest = hashlib.sha256(content).hexdigest()
    return Remote("some.bin", server.base + path, digest, len(content))


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_a_file_is_downloaded_once(server, tmp_path, monkeypatch):
    path = get(remote(server))
    assert path == tmp_path / "some.bin"
    assert path.read_bytes() == CONTENT
    monkeypatch.setenv(cache.OFFLINE, "1")
    assert get(remote(server)) == path
    assert len(server.asked) == 1
    assert names(tmp_path) == ["some.bin"]


def test_offline_never_asks(server, monkeypatch):
    monkeypatch.setenv(cache.OFFLINE, "1")
    with pytest.raises(ValueError, match=r"ADAMW_JAX_OFFLINE forbids to download it: copy it"):
        get(remote(server))
    assert server.asked == []


@pytest.mark.parametrize("kind", ["whole", "no ranges"])
def test_an_interrupted_download_goes_on(server, tmp_path, kind):
    server.pages["/file"] = (kind, CONTENT)
    (tmp_path / "some.bin.part").write_bytes(CONTENT[:1000])
    assert get(remote(server)).read_bytes() == CONTENT
    assert server.asked == [("/file", "bytes=1000-")]


def test_a_connection_that_breaks_is_tried_again_from_there(server):
    server.pages["/file"] = ("cut", CONTENT)
    with pytest.raises(ValueError, match=r"it ended after \d+ of 10240 bytes. Try again"):
        get(remote(server))
    asked = [begin for _, begin in server.asked]
    assert asked[0] is None
    assert asked[1] == "bytes=5121-"
    server.pages["/file"] = ("whole", CONTENT)
    assert get(remote(server)).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("served", "message"),
    [
        (CONTENT[:-1] + b"!", "its SHA-256 is .* It is deleted; try again"),
        (CONTENT + b"more", "has more than the expected 10240 bytes"),
    ],
)
def test_another_file_never_gets_its_name(server, tmp_path, served, message):
    server.pages["/file"] = ("whole", served)
    with pytest.raises(ValueError, match=message):
        get(remote(server))
    assert "some.bin" not in names(tmp_path)


def test_a_damaged_file_in_the_cache_is_refused(server, tmp_path):
    for content in (CONTENT[1:], CONTENT[1:] + b"!"):
        (tmp_path / "some.bin").write_bytes(content)
        with pytest.raises(ValueError, match=r"is not the file of .* Delete it"):
            get(remote(server))


def test_only_https_also_after_a_redirect(server):
    server.pages["/there"] = ("redirect", "/file")
    assert get(remote(server, "/there")).read_bytes() == CONTENT
    get(remote(server, "/there")).unlink()
    for target in ("http://127.0.0.1:9/file", "ftp://127.0.0.1/file"):
        server.pages["/away"] = ("redirect", target)
        with pytest.raises(ValueError, match=r"must begin with https://"):
            get(remote(server, "/away"))
    with pytest.raises(ValueError, match=r"must begin with https://"):
        get(Remote("some.bin", "http://example.org/some.bin", "0" * 64, 1))


def test_what_the_server_refuses_is_not_asked_for_again(server):
    server.pages["/gone"] = ("missing", b"")
    with pytest.raises(ValueError, match="404"):
        get(remote(server, "/gone"))
    assert len(server.asked) == 1


def tar(path, *listed):
    """Write a .tar.gz of (name, content) pairs and ready TarInfo objects."""
    with tarfile.open(path, "w:gz") as archive:
        for each in listed:
            if isinstance(each, tarfile.TarInfo):
                archive.addfile(each)
            else:
                head = tarfile.TarInfo(each[0])
                head.size = len(each[1])
                archive.addfile(head, io.BytesIO(each[1]))
    return path


def special(name, kind, target=""):
    head = tarfile.TarInfo(name)
    head.type, head.linkname = kind, target
    return head


GOOD = ("data/a", b"12345")
HOSTILE = [
    (("../a", b"x"), "points outside"),
    (("/etc/a", b"x"), "points outside"),
    (("data/../../a", b"x"), "points outside"),
    (("c:\\a", b"x"), "points outside"),
    (special("data/b", tarfile.SYMTYPE, "/etc/passwd"), "link or a device"),
    (special("data/b", tarfile.LNKTYPE, "data/a"), "link or a device"),
    (special("data/b", tarfile.CHRTYPE), "link or a device"),
    (special("data/b", tarfile.FIFOTYPE), "link or a device"),
    (GOOD, "occurs twice"),
    (("./data/a", b"x"), "occurs twice"),
    (("data/bomb", bytes(OTHERS + 100)), "expands to more bytes"),
]


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(("bad", "message"), HOSTILE)
def test_hostile_tar_archives_are_refused(tmp_path, bad, message, first):
    path = tar(tmp_path / "a.tar.gz", *((bad, GOOD) if first else (GOOD, bad)))
    with pytest.raises(ValueError, match=message):
        members(path, {"data/a": 5})
    assert names(tmp_path) == ["a.tar.gz"]


def test_members_are_bounded_and_must_be_there(tmp_path):
    path = tar(tmp_path / "a.tar.gz", special("data", tarfile.DIRTYPE), GOOD, ("data/b", b"other"))
    assert members(path, {"data/a": 5}) == {"data/a": b"12345"}
    with pytest.raises(ValueError, match="data/a has 5 bytes, more than 4"):
        members(path, {"data/a": 4})
    with pytest.raises(ValueError, match="it has no data/c"):
        members(path, {"data/a": 5, "data/c": 1})


def test_truncated_archives_are_refused(tmp_path):
    content = np.random.default_rng(0).bytes(5000)
    whole = tar(tmp_path / "a.tar.gz", ("data/a", content)).read_bytes()
    for length in (0, 5, 100, 3000, len(whole) - 4):
        (tmp_path / "b.tar.gz").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cannot read the archive"):
            members(tmp_path / "b.tar.gz", {"data/a": 5000})


def packed(path, *listed, flags=None):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content, mode in listed:
            head = zipfile.ZipInfo(name)
            head.external_attr = mode << 16
            archive.writestr(head, content)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (("../a", b"x", 0o100644), "points outside"),
        (("/a", b"x", 0o100644), "points outside"),
        (("data/b", b"/etc/passwd", 0o120777), "link or a device"),
        (("data/a", b"x", 0o100644), "occurs twice"),
    ],
)
def test_hostile_zip_archives_are_refused(tmp_path, bad, message):
    path = packed(tmp_path / "a.zip", ("data/a", b"12345", 0o100644), bad)
    with pytest.raises(ValueError, match=message):
        members(path, {"data/a": 5})


def test_zip_members_are_bounded(tmp_path):
    path = packed(tmp_path / "a.zip", ("data/a", bytes(10**6), 0o100644), ("b", b"x", 0))
    assert members(path, {"b": 1}) == {"b": b"x"}
    with pytest.raises(ValueError, match="data/a has 1000000 bytes, more than 5"):
        members(path, {"data/a": 5})
    damaged = path.read_bytes().replace(b"PK\x05\x06", b"PK\x05\x07")
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="cannot read the archive"):
        members(path, {"b": 1})


@pytest.mark.parametrize("kind", [CIFAR10, CIFAR100], ids=["CIFAR-10", "CIFAR-100"])
def test_cifar_reads_its_synthetic_twin(tmp_path, kind):
    path = tmp_path / "twin.tar.gz"
    kind.write(path, records=20, seed=3)
    (images, labels), (others, _) = kind.read(path)
    assert images.shape == (20 * len(kind.train), 32, 32, 3)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
    assert others.shape == (20, 32, 32, 3)
    assert 0 <= labels.min() <= labels.max() < kind.classes


def test_the_bytes_of_a_record_are_a_label_and_three_planes(tmp_path):
    """Red is the first plane, and a plane goes row by row."""
    pixels = np.arange(3072) % 251
    record = bytes([7, *pixels])
    listed = [(name, record) for name in (*CIFAR10.train, *CIFAR10.test)]
    (images, labels), _ = CIFAR10.read(tar(tmp_path / "a.tar.gz", *listed))
    assert labels.tolist() == [7] * 5
    assert images[0, 2, 5].tolist() == [pixels[69], pixels[1024 + 69], pixels[2048 + 69]]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (bytes(3073) + bytes([255]) + bytes(3072), "has the label 255 at byte 3073"),
        (bytes(3072), "records of 3073 bytes, got 3072"),
        (b"", "records of 3073 bytes, got 0"),
    ],
)
def test_malformed_records_are_refused(tmp_path, record, message):
    listed = [(name, record) for name in (*CIFAR10.train, *CIFAR10.test)]
    with pytest.raises(ValueError, match=message):
        CIFAR10.read(tar(tmp_path / "a.tar.gz", *listed))


def test_the_real_cifar_must_have_all_records(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.FOLDER, str(tmp_path))
    path = tmp_path / CIFAR10.remote.name
    CIFAR10.write(path, records=3)
    with pytest.raises(ValueError, match="is not the file of https"):
        CIFAR10.load()
    monkeypatch.setattr(cache, "verify", lambda path, remote: None)
    with pytest.raises(ValueError, match=r"must have 50000 records in .*, got 15"):
        CIFAR10.load()


def test_gzip_is_not_trusted_by_its_own_size(tmp_path):
    """A stream of zeros behind a small header stops at the bound."""
    path = tmp_path / "a.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        head = tarfile.TarInfo("data/other")
        head.size = 10**12
        file.write(head.tobuf())
        for _ in range(40):
            file.write(bytes(1 << 20))
    with pytest.raises(ValueError, match="expands to more bytes"):
        members(path, {"data/a": 5})


PHOTOGRAPHS = pytest.mark.skipif(
    not importlib.util.find_spec("skimage"), reason="needs scikit-image"
)


@PHOTOGRAPHS
def test_patches_come_from_separate_parts_of_the_photographs():
    """What is tested is right of what is trained on, with a gap; each patch is standardized."""
    from adamw_jax.lab.data import photographs as module

    found = module.photographs(("skimage/data/camera.png", "skimage/data/brick.png"), per_class=50)
    assert found.train.inputs.shape == (100, 32, 32, 1)
    assert np.bincount(found.train.labels).tolist() == [50, 50]
    for part in (found.train, found.validation, found.test):
        np.testing.assert_allclose(part.inputs.mean((1, 2, 3)), 0, atol=1e-4)
        assert part.inputs.std((1, 2, 3)).min() > 0.8
    image = module._grey("skimage/data/camera.png")
    cut = int(image.shape[1] * 0.62)
    windows = np.lib.stride_tricks.sliding_window_view(image, (32, 32))[::8]
    flat = windows.reshape(-1, 1024)
    flat = (flat - flat.mean(1, keepdims=True)) / (flat.std(1, keepdims=True) + 1e-3)

    def places_of(part: Split) -> set[tuple[int, int]]:
        """Return the windows of the photograph that some patches are."""
        patches = part.inputs[part.labels == 0][:20].reshape(-1, 1024)
        at = (flat @ patches.T).argmax(0)  # two standardized patches agree most if they are equal
        np.testing.assert_allclose(flat[at], patches, atol=1e-4)
        rows, columns = np.unravel_index(at, windows.shape[:2])
        return {(8 * int(row), int(column)) for row, column in zip(rows, columns, strict=True)}

    places = {
        "train": places_of(found.train),
        "validation": places_of(found.validation),
        "test": places_of(found.test),
    }
    assert max(x for _, x in places["train"]) + 32 <= cut
    assert min(x for _, x in places["validation"] | places["test"]) >= cut + 8
    assert not places["validation"] & places["test"]


@PHOTOGRAPHS
def test_the_same_seed_gives_the_same_patches():
    from adamw_jax.lab.data.photographs import PHOTOGRAPHS as NAMES, photographs

    one, same, other = (photographs(NAMES[:2], per_class=9, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.train.inputs, same.train.inputs)
    assert not np.array_equal(one.train.inputs, other.train.inputs)


def test_photographs_of_a_missing_package_name_the_extra():
    from adamw_jax.lab.data.photographs import photographs

    with pytest.raises(ValueError, match=r'pip install "adamw-jax\[demo,images\]"'):
        photographs(("no_such_package/a.png",))


def test_cars_reads_its_twin_and_refuses_what_is_not_whole(tmp_path):
    root = tmp_path / "cars"
    cars.write(root, count=6, size=40)
    found = cars.listed(root)
    paths, labels = found["train"]
    assert (len(paths), labels.dtype) == (6, np.int32)
    assert 0 <= labels.min() <= labels.max() < cars.CLASSES
    made = cars.images(paths, size=24)
    assert (made.shape, made.dtype) == ((6, 24, 24, 3), np.uint8)
    with pytest.raises(ValueError, match="must list 8144 images, got 6"):
        cars.verify(root)
    (paths[2]).write_bytes(b"no image")
    with pytest.raises(ValueError, match="cannot read the image"):
        cars.images(paths)
    paths[2].unlink()
    with pytest.raises(ValueError, match=r"but 1 are missing, such as 00003.jpg"):
        cars.listed(root)
    paths[2].touch()
    (root / cars.ANNOTATIONS["test"]).write_bytes(b"MATLAB 5.0")
    with pytest.raises(ValueError, match=r"cannot read the annotations of Stanford Cars"):
        cars.listed(root)


def test_annotations_of_cars_cannot_lead_out_of_the_folder(tmp_path):
    for file, label, message in (
        ("../../secret.jpg", 1, "must name files only"),
        ("00001.jpg", 197, "labels from 1 to 196"),
    ):
        root = tmp_path / str(label)
        cars.write(root, count=1)
        rows = np.zeros((1, 1), dtype=[("fname", object), ("class", object)])
        rows[0, 0] = (file, label)
        scipy.io.savemat(root / cars.ANNOTATIONS["train"], {"annotations": rows})
        with pytest.raises(ValueError, match=message):
            cars.listed(root)
