"""The data that comes with revkit: its files, and the two sets of reviews as DataFrames."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError, nearest

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["data_file", "load_reviews"]

_REVIEWS = {"reviews": "reviews.csv", "amazon": "amazon_reviews.parquet"}
_FILES = (*_REVIEWS.values(), "config.llama.json", "README.md")

# A wheel carries the files inside the package; a checkout has them beside it.
_PACKAGED = Path(__file__).parent.parent / "_data"
_CHECKOUT = Path(__file__).parent.parent.parent / "data"


def data_file(name: str) -> Path:
    """The path of a file that comes with revkit.

    Args:
        name: ``"reviews.csv"``, ``"amazon_reviews.parquet"``, ``"config.llama.json"`` (an agent
            file for :func:`revkit.load_agent`) or ``"README.md"`` (source, licence and columns).

    Raises:
        UsageError: there is no file of that name.

    >>> from revkit import data_file
    >>> data_file("config.llama.json").name
    'config.llama.json'
    """
    if name not in _FILES:
        raise UsageError(f'revkit has no data file "{name}": {nearest(name, _FILES)}')
    packaged = _PACKAGED / name
    return packaged if packaged.is_file() else _CHECKOUT / name


def load_reviews(name: str = "reviews") -> pd.DataFrame:
    """Product reviews with a sentiment label, to try things on.

    Args:
        name: ``"reviews"``: twelve invented reviews, one or two sentences each. ``"amazon"``:
            1,837 snippets of real customer reviews, rated by people (Hutto & Gilbert 2014, on
            texts of Hu & Liu 2004).

    Returns:
        A new frame at each call, with a default index. Text columns have pandas' default text
        dtype: ``str`` in pandas 3, ``object`` in pandas 2. ``label`` is positive, neutral or
        negative.

        ``"reviews"``: shape (12, 4); ``id`` int64, ``product``, ``review`` and ``label`` text.

        ``"amazon"``: shape (1837, 6); ``id`` text, ``review_id`` and ``sentence`` int64, ``review``
        text, ``rating`` float64 (mean human rating, -4 to 4), ``label`` text (positive from 0.5 up,
        negative from -0.5 down).

    Raises:
        UsageError: there is no set of that name.

    >>> import revkit
    >>> reviews = revkit.load_reviews()
    >>> reviews.shape
    (12, 4)
    >>> reviews["label"].value_counts().sort_index().to_dict()
    {'negative': 3, 'neutral': 3, 'positive': 6}
    >>> revkit.load_reviews("amazon").shape
    (1837, 6)
    """
    if name not in _REVIEWS:
        raise UsageError(f'revkit has no reviews named "{name}": {nearest(name, _REVIEWS)}')

    import pandas as pd

    path = data_file(_REVIEWS[name])
    return pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
