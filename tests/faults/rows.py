"""The table of bad input: what is brought, how it ends, and the words that say why. docs/bad-input.md shows it."""

from __future__ import annotations

import io
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from pneumonia import contract
from tests.xray_folders import kaggle_names, write_images

IMAGE, FOLDER, BUNDLE, SERVER, PLACE = "An image", "A data folder", "A bundle", "A server", "A place to write, and time"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    kind: the table it stands in. code: how the command exits. words: what its message has; for what is accepted, what
    the warning has. make: puts the input into a folder and returns its path, or, for a data folder, the overrides
    beside it; None where the test itself brings it about. why: what is done, and the reason where there is a choice.
    served: whether the bytes can be sent to a server. restricted: needs permissions that count.
    """

    kind: str
    name: str
    code: int
    words: str
    why: str
    make: Callable[[Path], Path] | None = None
    overrides: tuple[str, ...] = ()
    served: bool = True
    restricted: bool = False

    def __str__(self) -> str:
        return self.name.replace(" ", "_").replace("/", "_")


def picture() -> np.ndarray:
    """What every readable image shows, uint8 (96, 128): brighter to the right and to the bottom."""
    return (np.linspace(0, 155, 128)[None, :] + np.linspace(0, 100, 96)[:, None]).astype(np.uint8)


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, kind, **options)
    return stream.getvalue()


def file(name: str, data: Callable[[], bytes]) -> Callable[[Path], Path]:
    """A maker of a file of that name."""

    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(data())
        return path

    return make


def jpeg(**options: object) -> bytes:
    return encode(picture(), "JPEG", quality=95, **options)


def bomb() -> bytes:
    """A PNG of 30000x30000 pixels in about 110 kB."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = zlib.compress(bytes((30_000 // 8 + 1) * 30_000), 9)
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def palette() -> bytes:
    """Palette entry n is grey n; the left half is wholly transparent."""
    values = picture() | 1
    values[:, :64] = 0
    image = Image.fromarray(values)
    image.putpalette([level for grey in range(256) for level in (grey, grey, grey)])
    return encode(image, transparency=0)


def turned() -> bytes:
    """Stored lying, with the note that it is to be turned by a quarter."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(np.rot90(picture()), "JPEG", quality=95, exif=exif)


def animation() -> bytes:
    frames = [Image.fromarray(np.roll(picture(), shift)) for shift in (0, 9, 18)]
    return encode(frames[0], "GIF", save_all=True, append_images=frames[1:])


def unwritable_exif() -> bytes:
    """A quarter turn beside a note that cannot be written again."""
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHII", 0x8769, 3, 1, 7)
    segment = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + entries + bytes(4)
    data = encode(np.rot90(picture()), "JPEG", quality=95)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]


def noted() -> bytes:
    """A PNG with 3 MB of text."""
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", "a" * 3_000_000, zip=True)
    return encode(picture(), pnginfo=notes)


def scanned() -> bytes:
    """A progressive JPEG with one scan a thousand times."""
    data = jpeg(progressive=True)
    start, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:end] + data[start:end] * 1000 + data[end:]


def twelve_bits() -> bytes:
    """A JPEG whose samples have 12 bits, as its frame says."""
    data = bytearray(jpeg())
    frame = data.index(b"\xff\xc0")
    data[frame + 1], data[frame + 4] = 0xC1, 12
    return bytes(data)


def locked(folder: Path) -> Path:
    path = file("locked.jpeg", jpeg)(folder)
    path.chmod(0)
    return path


def loop(folder: Path) -> Path:
    path = folder / "loop.jpeg"
    path.symlink_to(path)
    return path


def foreign(folder: Path) -> Path:
    path = Path(os.fsdecode(os.fsencode(folder) + b"/r\xf6ntgen.jpeg"))
    path.write_bytes(jpeg())
    return path


IMAGES = (
    Row(IMAGE, "empty file", 3, "empty, 0 bytes", "refused", file("empty.jpeg", bytes)),
    Row(IMAGE, "text named .jpeg", 3, "not an image this reads", "refused; the content decides, never the name",
        file("text.jpeg", lambda: b"Findings: none.\n")),
    Row(IMAGE, "truncated JPEG", 3, "damaged image data", "refused; the missing part could be the lower lobes",
        file("cut.jpeg", lambda: jpeg()[:-200])),
    Row(IMAGE, "JPEG with trailing garbage", 0, "", "read; the picture is whole, and archives pad files to a block",
        file("padded.jpeg", lambda: jpeg() + bytes(100) + b"sent by PACS 7" * 20)),
    Row(IMAGE, "1x1 pixels", 3, "1x1 pixels; a radiograph of at least 64x64 is needed", "refused",
        file("dot.png", lambda: encode(np.zeros((1, 1), np.uint8)))),
    Row(IMAGE, "30000x30000 pixels in 110 kB", 3, "more pixels than are safe to decode",
        "refused from its header, before memory is taken", file("bomb.png", bomb)),
    Row(IMAGE, "CMYK JPEG", 0, "", "read as grey; it comes out of print software, and colour means nothing here",
        file("cmyk.jpeg", lambda: encode(Image.fromarray(picture()).convert("CMYK"), "JPEG", quality=95))),
    Row(IMAGE, "16-bit PNG", 0, "", "read, the upper 8 bits, where the values use the range",
        file("deep.png", lambda: encode(picture().astype(np.uint16) << 8 | 0x5A))),
    Row(IMAGE, "12 bits in a 16-bit PNG", 3, "a 16-bit PNG whose values hardly exceed",
        "refused; it would look nearly black, and nothing says which value is white",
        file("shallow.png", lambda: encode(picture().astype(np.uint16) << 4))),
    Row(IMAGE, "12-bit JPEG", 3, "a 12-bit JPEG, which is not read here", "refused", file("deep.jpeg", twelve_bits)),
    Row(IMAGE, "image of one grey", 3, "an image without contrast", "refused; a model answers it as it likes",
        file("blank.png", lambda: encode(np.full((96, 128), 90, np.uint8)))),
    Row(IMAGE, "EXIF rotation beside damaged EXIF", 0, "", "read upright; nothing of EXIF is written again",
        file("odd.jpeg", unwritable_exif)),
    Row(IMAGE, "PNG with 3 MB of text", 0, "", "read; remarks are no part of the picture", file("noted.png", noted)),
    Row(IMAGE, "JPEG of a thousand scans", 3, "scans, which takes very long to decode",
        "refused before it is decoded", file("scans.jpeg", scanned)),
    Row(IMAGE, "palette with alpha", 0, "", "read; what is transparent is black, as outside the collimated field",
        file("palette.png", palette)),
    Row(IMAGE, "EXIF rotation", 0, "", "read upright, as every viewer shows it", file("turned.jpeg", turned)),
    Row(IMAGE, "animated GIF", 3, "not an image this reads", "refused; nobody can say which frame is meant",
        file("moving.gif.jpeg", animation)),
    Row(IMAGE, "no permission to read", 3, "cannot be read (Permission denied)", "refused", locked, served=False,
        restricted=True),
    Row(IMAGE, "symlink loop", 3, "cannot be read (Too many levels of symbolic links)", "refused", loop, served=False),
    Row(IMAGE, "file that disappears before it is read", 3, "cannot be read (No such file or directory)", "refused",
        lambda folder: folder / "gone.jpeg", served=False),
    Row(IMAGE, "file name that is not UTF-8", 0, "", "read; the name is printed with replacement characters", foreign),
)  # fmt: skip


BY_NAME = r"data.patient_regex='^((?:NORMAL2-)?IM-\d+|person\d+)'"
"""Patients of images() without a look for PatientID in each file, so that every file is opened once."""


def images(root: Path) -> Path:
    """Enough patients of both classes, in the names of the Kaggle set."""
    return write_images(root, kaggle_names())


def table(*lines: str, header: str = "path,label,patient_id,split") -> Callable[[Path], Path]:
    """A maker of a folder with a labels.csv of these lines beside the images a.png and b.png."""

    def make(root: Path) -> Path:
        write_images(root, ["a.png", "b.png"])
        (root / "labels.csv").write_text("\n".join([header, *lines]) + "\n", "utf-8")
        return root

    return make


def straddling(root: Path) -> Path:
    """Two images a patient, 12 patients a class, and one of them in train and in test."""
    lines = ["path,label,patient_id,split"]
    for label in contract.LABELS:
        for patient in range(12):
            for image in range(2):
                part = "test" if patient % 2 else "train"
                own = "test" if (label, patient, image) == ("NORMAL", 0, 1) else part
                lines.append(f"{label}-{patient}-{image}.png,{label},{label}{patient},{own}")
                write_images(root, [f"{label}-{patient}-{image}.png"])
    (root / "labels.csv").write_text("\n".join(lines), "utf-8")
    return root


def with_link(root: Path) -> Path:
    """Images, and class folders that are links to themselves."""
    root.mkdir()
    for label in contract.LABELS:
        (root / label).symlink_to(root / label)
    return root


def locked_folder(root: Path) -> Path:
    images(root)
    (root / "PNEUMONIA").chmod(0)
    return root


def two_labels(root: Path) -> Path:
    images(root)
    shutil.copy(root / "PNEUMONIA/person1_bacteria_1.jpeg", root / "NORMAL/IM-0500-0001.jpeg")
    return root


def no_images(root: Path) -> Path:
    (root / "NORMAL").mkdir(parents=True)
    (root / "PNEUMONIA").mkdir()
    (root / "PNEUMONIA" / "notes.txt").write_text("to do")
    return root


FOLDERS = (
    Row(FOLDER, "no images in it", 3, "no .jpeg, .jpg, .png, .dcm, .dicom files in folders NORMAL and PNEUMONIA",
        "refused", no_images),
    Row(FOLDER, "wrong class folders", 3, "found healthy, sick", "refused; what was found is named",
        lambda root: write_images(root, ["healthy/a.png", "sick/b.png"])),
    Row(FOLDER, "one class only", 3, "none of them PNEUMONIA; both classes are needed", "refused",
        lambda root: write_images(root, ["NORMAL/a.png", "NORMAL/b.png"])),
    Row(FOLDER, "class folder without permission", 3, "PNEUMONIA: cannot be read (Permission denied)", "refused",
        locked_folder, restricted=True),
    Row(FOLDER, "class folder that is a symlink loop", 3, "no .jpeg, .jpg, .png, .dcm, .dicom files", "refused",
        with_link),
    Row(FOLDER, "labels.csv with a missing file", 3, "line 3: gone.png is not a file under", "refused, with the line",
        table("a.png,NORMAL,,", "gone.png,PNEUMONIA,,")),
    Row(FOLDER, "labels.csv with a duplicate", 3, "line 4: a.png stands on line 2 already", "refused, with both lines",
        table("a.png,NORMAL,,", "b.png,PNEUMONIA,,", "a.png,NORMAL,,")),
    Row(FOLDER, "labels.csv with an unknown label", 3, "line 3: label 'HEALTHY', expected NORMAL or PNEUMONIA",
        "refused, with the line", table("a.png,NORMAL,,", "b.png,HEALTHY,,")),
    Row(FOLDER, "a patient on both sides of a given split", 3,
        "1 patients are in more than one part of the split, such as the one of NORMAL-0-0.png (train) and",
        "refused; every figure would be too good", straddling, ("split.strategy=official",)),
    Row(FOLDER, "one image under two labels", 3, "are the same image with two labels",
        "refused; only the user knows which is right", two_labels),
)  # fmt: skip


def flipped(name: str, find: bytes | None = None) -> Callable[[Path], Path]:
    """A maker that flips one bit of a file of the bundle: of the byte after `find`, or in the middle."""

    def make(bundle: Path) -> Path:
        data = bytearray((bundle / name).read_bytes())
        data[data.index(find) + len(find) if find else len(data) // 2] ^= 1
        (bundle / name).write_bytes(data)
        return bundle

    return make


def newer(bundle: Path) -> Path:
    path = bundle / contract.BUNDLE_MANIFEST
    path.write_text(path.read_text().replace('"schema_version": 2', '"schema_version": 3'))
    return bundle


def without(name: str) -> Callable[[Path], Path]:
    def make(bundle: Path) -> Path:
        (bundle / name).unlink()
        return bundle

    return make


def half_manifest(bundle: Path) -> Path:
    path = bundle / contract.BUNDLE_MANIFEST
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return bundle


BUNDLES = (
    Row(BUNDLE, "one flipped bit in the model", 3, "model.onnx: SHA-256", "refused", flipped(contract.ONNX_FILE)),
    Row(BUNDLE, "one flipped bit in the threshold", 3, "bundle.json: was changed after it was written", "refused",
        flipped(contract.BUNDLE_MANIFEST, b'"threshold": 0.')),
    Row(BUNDLE, "of a newer schema", 3, "schema version 3, this release reads 1 and 2", "refused", newer),
    Row(BUNDLE, "half written: a file is missing", 3, "model.onnx: cannot be read (No such file or directory)",
        "refused", without(contract.ONNX_FILE)),
    Row(BUNDLE, "half written: the manifest is cut", 3, "bundle.json: not JSON", "refused", half_manifest),
    Row(BUNDLE, "half written: no manifest yet", 4, "bundle.json is missing; make one with `make demo`",
        "the manifest is written last, so without it there is no bundle", without(contract.BUNDLE_MANIFEST)),
)  # fmt: skip

SERVERS = (
    Row(SERVER, "down", 4, "start one with `pneumoctl serve`", "told, with the command that starts one"),
    Row(SERVER, "dying during a request", 4, "no server at", "told; the image has not been answered"),
    Row(SERVER, "answering what is not JSON", 4, "answered what is no answer of pneumonia_detection", "refused"),
    Row(SERVER, "answering with other outputs", 4, "answered what is no answer of pneumonia_detection", "refused"),
    Row(SERVER, "answering a label that is none", 4, "answered what is no answer of pneumonia_detection", "refused"),
    Row(SERVER, "answering NaN", 4, "answered what is no answer of pneumonia_detection", "refused"),
    Row(SERVER, "answering two images where one was sent", 4, "2 answers to 1 images", "refused"),
    Row(SERVER, "ending its answer early", 4, "no server at", "told; the image has not been answered"),
    Row(SERVER, "speaking something else than gRPC", 4, "for grpc", "told (with --protocol grpc)"),
    Row(SERVER, "answering gRPC with garbage", 4, "did not answer", "told (with --protocol grpc)"),
    Row(SERVER, "port taken", 4, "cannot be used for http", "told, with the option that chooses another"),
)  # fmt: skip

PLACES = (
    Row(PLACE, "disk full: fetch", 4, "cannot be written (No space left on device)", "told; nothing is half written"),
    Row(PLACE, "disk full: prepare", 4, "cannot be written (No space left on device)",
        "told; the former data set stays"),
    Row(PLACE, "disk full: train", 4, "No space left on device", "told; the former bundle stays"),
    Row(PLACE, "disk full: publish", 4, "cannot be written (No space left on device)",
        "told; no release appears"),
    Row(PLACE, "folder without permission to write", 4, "cannot be written (Permission denied)", "told"),
    Row(PLACE, "`--output` that holds other files", 2, "and would be replaced as a whole; name a new or empty folder",
        "refused before any work; nothing in it is touched"),
    Row(PLACE, "target that is a mount point", 4, "choose a folder inside the mount", "told; what it holds stays"),
    Row(PLACE, "two processes preparing one folder", 0, "waiting for another process",
        "the second waits and then finds the work done"),
    Row(PLACE, "file that disappears while its folder is prepared", 0, "left out,",
        "left out with a warning, and named in prepared.json"),
    Row(PLACE, "clock going backwards", 0, "",
        "nothing orders or names anything by time alone: a file that was replaced by an older one is read again, and "
        "no checkpoint is lost"),
)  # fmt: skip

ROWS = (*IMAGES, *FOLDERS, *BUNDLES, *SERVERS, *PLACES)


def named(name: str) -> Row:
    """The row of that name."""
    (found,) = (row for row in ROWS if row.name == name)
    return found


def render() -> str:
    """The tables as they stand in docs/bad-input.md."""
    parts = []
    for kind in dict.fromkeys(row.kind for row in ROWS):
        lines = [f"### {kind}", "", "| what comes | exit code | what is done | the message has |", "|---|---|---|---|"]
        for row in ROWS:
            if row.kind == kind:
                words = row.words.replace("|", "\\|").replace("`", "'")
                lines.append(f"| {row.name} | {row.code} | {row.why} | {f'`{words}`' if words else ''} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    print(render(), end="")
