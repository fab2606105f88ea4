"""A task over a Parquet file that need not fit into memory, into another one.

source      reads the rows of a file, chunk by chunk
sink        keeps finished chunks, and makes one file of them
run         map_parquet: what leads from one to the other
"""

from .run import ParquetResult, map_parquet

__all__ = ["ParquetResult", "map_parquet"]
