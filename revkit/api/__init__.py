"""The public calls.

call          parallel_map and aparallel_map
accessor      the same as df.llm and series.llm
preview       a look before a run: what would be sent, and what it may cost
chain         steps in sequence
chunks        one task over chunk after chunk
parquet/      the same from one Parquet file into another
conversation  a session that remembers what was said
data          the datasets that come with revkit
"""
