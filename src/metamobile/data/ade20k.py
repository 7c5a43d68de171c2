"""ADE20K's 150 classes of scene parsing, in the order of their numbers, which begin with 1; 0 is ignored."""

from __future__ import annotations

import csv
from pathlib import Path

from metamobile.errors import DataError

INFORMATION = "objectInfo150.txt"  # tab separated: Idx, Ratio, Train, Val, Stuff, Name
NAMES = tuple(
    """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth,
door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug,
field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column,
signboard, chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path,
stairs, runway, case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee
table, toilet, flower, book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair,
boat, bar, arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth,
television receiver, airplane, dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle,
buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool,
barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name, microwave,
pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray,
ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag
""".replace("\n", " ")
    .strip()
    .split(", ")
)


def read_names(root: Path) -> dict[int, str]:
    """{number in the masks: class}, of objectInfo150.txt where there is one.

    Errors: DataError for a file that is not laid out so.
    """
    path = root / INFORMATION
    if not path.is_file():
        return dict(enumerate(NAMES, 1))
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    try:
        names = {int(row["Idx"]): row["Name"].split(",")[0].strip() for row in rows}
    except (KeyError, ValueError, AttributeError):
        names = {}
    if not names or len(set(names.values())) < len(rows):
        raise DataError(
            f"{path}: expected a head with Idx and Name, tab separated, and a line for each class"
        )
    return names
