"""The maps that `explain` can draw, by name."""

from __future__ import annotations

from metamobile.errors import nearest

OCCLUSION = "occlusion"
METHODS = {  # our names, those of grad-cam's classes, those of the papers
    "gradcam": ("GradCAM", "Grad-CAM"),
    "gradcam++": ("GradCAMPlusPlus", "Grad-CAM++"),
    "eigencam": ("EigenCAM", "Eigen-CAM"),
    "scorecam": ("ScoreCAM", "Score-CAM"),
    OCCLUSION: ("", "Occlusion"),
}


def find_method(name: str) -> str:
    """The key of `METHODS` of any spelling: Grad-CAM++. Errors: ValueError with the nearest name."""
    known = list(METHODS)
    key = name.casefold().replace("-", "").replace("_", "").replace("plusplus", "++")
    if key not in known:
        raise ValueError(f"no map is called {name!r}; known are {', '.join(known)}{nearest(name, known)}")
    return key
