"""From a graph to results: cache keys, the cache, what runs when."""
