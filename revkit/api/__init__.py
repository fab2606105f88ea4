"""The public calls.

call          parallel_map and aparallel_map
arguments     which keyword arguments a public function has, and what they become
prepare       decides everything about a call, and refuses what cannot be done
finish        makes the result of a run, writes its columns, raises its error
accessor      the same as df.llm and series.llm
preview       a look before a run: what would be sent, and what it may cost
chain         steps in sequence
chunks        one task over chunk after chunk
chunked_run   what the chunks of one run have in common: limits, counts, stops
parquet/      the same from one Parquet file into another
conversation  a session that remembers what was said
data          the datasets that come with revkit
"""
