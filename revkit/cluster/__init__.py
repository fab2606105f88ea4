"""The same call on a Dask cluster: one budget, one store and one result for all its workers."""
