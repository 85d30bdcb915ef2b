"""What the tests of images and distribution share: a registry in process, and images made in memory."""
