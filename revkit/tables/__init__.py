"""From a frame, a Series or a list to the rows of a run.

batch    what ``revkit.parallel_map`` takes beside frames
binding  which column each input comes from
rows     the rows of a run, as columns of plain values
frame_lock  one lock for the callers' frames
dtypes   what frames have in common in every version of pandas
"""
