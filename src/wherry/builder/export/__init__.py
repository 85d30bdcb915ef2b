"""Where results go: images, archives, files; and what is said about them.

outputs.py              one output, of whatever type: `export`; ahead.py: layers are packed while later steps run
  image.py              type image: the image store, registries
  archive.py            types oci, docker: an archive, or blobs
  local.py              types local, tar: files
squash.py               one layer over the base
statements.py           provenance.py, sbom.py (with packages/): what is said of results; attest.py: how it is attached
assembly.py             seal.py, documents.py: layers become blobs; configs, manifests, indexes
cache_*.py              the build cache to and from elsewhere
settings.py  work.py    what was asked for, and what all exporters are given
"""
