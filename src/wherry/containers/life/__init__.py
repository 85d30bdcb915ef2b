"""From create to remove: the verbs that change what a container is, and what happens by itself when it ends."""
