//! The tar shard format: index, manifest, reader, writer. No other folder knows it.
