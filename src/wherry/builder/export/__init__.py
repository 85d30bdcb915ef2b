"""Where results go: images, archives, files; and what is said about them.

outputs.py              one output, of whatever type: `export`
  image.py              type image: the image store, registries
  archive.py            types oci, docker: an archive, or blobs
  local.py              types local, tar: files
squash.py  attest.py  provenance.py  sbom.py
seal.py  documents.py   layers become blobs; configs, manifests, indexes
settings.py  work.py    what was asked for, and what all exporters are given
"""
