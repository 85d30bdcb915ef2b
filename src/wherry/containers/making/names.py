"""Names for containers that were given none: an adjective and a navigator, engineer or scientist, `calm_hopper`."""

import random
from collections.abc import Container

_MOODS = (
    "able agile amber bold brave bright brisk calm candid cheerful clever coastal crisp curious daring deft eager "
    "early easy fair fleet frank free gentle glad golden grand happy hardy honest humble jolly keen kind lively "
    "loyal lucid lucky merry mild modest neat nimble noble patient placid plucky polite proud quick quiet ready "
    "serene sharp silent smart snug sober sound spry steady still stoic sunny swift tidal tidy true upbeat vivid "
    "warm wise witty zesty"
).split()
_PEOPLE = (
    "amundsen anning archimedes babbage baret bering bohr boole borlaug brahmagupta brunel carson cartwright "
    "cheng clarke cook copernicus curie darwin davinci dijkstra drake earhart edison einstein elcano euclid euler "
    "faraday fermat fermi feynman franklin galileo gama gauss germain goodall hamilton harrison heyerdahl hoover "
    "hopper hypatia jang johnson joliot kepler khwarizmi knuth kovalevsky lamarr leavitt liskov lovelace magellan "
    "maxwell mcclintock meitner mendel mercator mirzakhani nansen newton nightingale noether pascal pasteur payne "
    "perlman polo ptolemy ramanujan ride ritchie sejong shackleton shannon slocum somerville stroustrup "
    "tereshkova tesla thompson torvalds turing vespucci volta wu yalow yi zheng"
).split()


def generate(taken: Container[str]) -> str:
    """A name not in `taken`; a digit is added when chance finds no free pair."""
    for attempt in range(100):
        name = f"{random.choice(_MOODS)}_{random.choice(_PEOPLE)}"
        if attempt >= 10:
            name += str(random.randrange(10 ** (1 + attempt // 20)))
        if name not in taken:
            return name
    raise RuntimeError("no free container name found in 100 tries")
