"""The shipped data are what data/README.md says, and the loaders find them."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from revkit.api import data
from revkit.errors import UsageError

DATA = Path(__file__).parent.parent / "data"
LABELS = {"positive", "neutral", "negative"}


@pytest.fixture(scope="module")
def reviews() -> pd.DataFrame:
    return pd.read_csv(DATA / "reviews.csv")


@pytest.fixture(scope="module")
def amazon() -> pd.DataFrame:
    return pd.read_parquet(DATA / "amazon_reviews.parquet")


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("maker", DATA / "make_amazon_reviews.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# reviews.csv


def test_reviews_shape(reviews: pd.DataFrame) -> None:
    assert list(reviews.columns) == ["id", "product", "review", "label"]
    assert reviews["id"].tolist() == list(range(1, 13))
    assert reviews["product"].is_unique
    assert not reviews.isna().to_numpy().any()


def test_reviews_labels(reviews: pd.DataFrame) -> None:
    counts = reviews["label"].value_counts().to_dict()
    assert counts == {"positive": 6, "neutral": 3, "negative": 3}


def test_reviews_labels_are_in_mixed_order(reviews: pd.DataFrame) -> None:
    changes = (reviews["label"] != reviews["label"].shift()).sum()
    assert changes > len(LABELS)


def test_reviews_exercise_csv_quoting(reviews: pd.DataFrame) -> None:
    assert reviews["review"].str.contains(",").any()
    assert reviews["review"].str.contains('"').any()
    with (DATA / "reviews.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["review"] for row in rows] == reviews["review"].tolist()


# amazon_reviews.parquet


def test_amazon_columns(amazon: pd.DataFrame) -> None:
    assert len(amazon) == 1837
    assert list(amazon.columns) == ["id", "review_id", "sentence", "review", "rating", "label"]
    assert amazon["review_id"].dtype == np.int64
    assert amazon["sentence"].dtype == np.int64
    assert amazon["rating"].dtype == np.float64
    assert not amazon.isna().to_numpy().any()


def test_amazon_has_odd_reviews_only(amazon: pd.DataFrame) -> None:
    assert (amazon["review_id"] % 2 == 1).all()


def test_amazon_ids_name_review_and_sentence(amazon: pd.DataFrame) -> None:
    assert amazon["id"].is_unique
    named = amazon["review_id"].astype(str) + "_" + amazon["sentence"].astype(str)
    assert amazon["id"].tolist() == named.tolist()


def test_amazon_has_text_in_every_row(amazon: pd.DataFrame) -> None:
    assert (amazon["review"].str.strip().str.len() > 0).all()


def test_amazon_labels_follow_the_ratings(amazon: pd.DataFrame) -> None:
    assert amazon["rating"].between(-4, 4).all()
    ratings = amazon["rating"].to_numpy()
    expected = np.where(
        ratings >= 0.5, "positive", np.where(ratings <= -0.5, "negative", "neutral")
    )
    assert amazon["label"].tolist() == expected.tolist()
    counts = amazon["label"].value_counts().to_dict()
    assert counts == {"positive": 939, "negative": 562, "neutral": 336}


def test_amazon_is_compressed_with_zstd() -> None:
    column = pq.ParquetFile(DATA / "amazon_reviews.parquet").metadata.row_group(0).column(3)
    assert column.compression == "ZSTD"


@pytest.mark.parametrize(
    ("rating", "label"),
    [
        (4.0, "positive"),
        (0.5, "positive"),
        (0.49, "neutral"),
        (0.0, "neutral"),
        (-0.49, "neutral"),
        (-0.5, "negative"),
        (-4.0, "negative"),
    ],
)
def test_label_thresholds(maker: ModuleType, rating: float, label: str) -> None:
    assert maker.label_of(rating) == label


# config.llama.json


def test_agent_file() -> None:
    agent = json.loads((DATA / "config.llama.json").read_text(encoding="utf-8"))
    assert agent["name"] == "sentiment-analyst"
    provider = agent["client"]["provider"]
    assert provider["name"] == "ollama"
    assert provider["base_url"] == "http://localhost:11434"
    assert provider["model"]["name"] == "llama3.2:3b"
    assert provider["model"]["capabilities"]["chat"] == {"max_tokens": 150, "temperature": 0.0}


# The loaders


def test_load_reviews(reviews: pd.DataFrame, amazon: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(data.load_reviews(), reviews)
    pd.testing.assert_frame_equal(data.load_reviews("amazon"), amazon)


@pytest.mark.parametrize("name", ["reviews", "amazon"])
def test_text_columns_have_the_default_text_dtype(name: str) -> None:
    text = pd.Series(["text"]).dtype
    frame = data.load_reviews(name)
    words = frame.drop(columns="id").select_dtypes(exclude="number")
    assert set(words.columns) >= {"review", "label"}
    assert all(words[column].dtype == text for column in words)
    assert set(frame["label"]) == LABELS


def test_load_reviews_gives_a_new_frame_each_time() -> None:
    first = data.load_reviews()
    first["review"] = "changed"
    assert "changed" not in data.load_reviews()["review"].tolist()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("amazn", 'revkit has no reviews named "amazn": did you mean "amazon"?'),
        ("", 'revkit has no reviews named "": there are "reviews", "amazon".'),
    ],
)
def test_unknown_reviews_name_the_known(name: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        data.load_reviews(name)
    assert str(caught.value) == message


def test_data_files_exist() -> None:
    for name in ["reviews.csv", "amazon_reviews.parquet", "config.llama.json", "README.md"]:
        assert data.data_file(name).is_file()


def test_unknown_data_file_names_the_known() -> None:
    with pytest.raises(UsageError, match=r'did you mean "config\.llama\.json"'):
        data.data_file("config.json")
    with pytest.raises(UsageError, match="no data file"):
        data.data_file("../pyproject.toml")


def test_the_packaged_copy_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reviews.csv").write_text("id,review\n1,packaged\n", encoding="utf-8")
    monkeypatch.setattr(data, "_PACKAGED", tmp_path)
    assert data.load_reviews()["review"].tolist() == ["packaged"]
    assert data.data_file("config.llama.json").parent == data._CHECKOUT
