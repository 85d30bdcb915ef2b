"""What the tests of containers share: a world of real stores with fakes at the outer seams."""
