"""Batch inference over very many images, on this machine or on a Ray cluster: `edgeport-run map`. Needs pyarrow, and Ray for a cluster.

`sources` finds the images, `tables` those of Parquet files, and `job` knows what is left to do. `worker` answers one chunk of images: `answers` are its
rows in Parquet, `deaths` finds images that end processes. `cluster` has workers on Ray, `command` all of it together.
"""
