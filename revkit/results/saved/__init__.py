"""A whole result in one Parquet file: one line for each row of the run.

The columns are those of the finished frame, then what is known of each row, under names that
begin with "revkit."; a row's attempts are a list. All that is not of one row (the run's other
facts, its provenance, and what Parquet does not keep of a column) is JSON in the schema's
metadata. A reader rebuilds the run's record from that, so every figure is computed anew by the
same code, and is the same.

Nothing that is read is unpickled or evaluated.

    values  the values of a column, there and back the same
    write   a result into a file
    read    a file into a result
"""
