"""Draw any number of faces of people who do not exist: the data that the package includes.

A person is a row of numbers (IDENTITY: the shape of the head, the distance of the eyes, where the moles are), an
image is another (IMAGE: pose, light, expression, what covers the face); `face_drawing` turns the two into pixels. So a
network can be trained, sparsified and tested on people that it never saw with nothing to download. This module decides
which numbers are drawn and from which generator; it must not know how a face is drawn, nor how people are divided into
training and test sets.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Generator, Tensor

from prunekit.contracts.seeds import Seeds

from .face_drawing import draw

VARIATION = 0.95
"""Scale of what differs between two images of one person: pose, light, expression, cover, background, blur.

Chosen so that pixels tell little about who it is while a small dense network learns to tell strangers apart. Trained
on 200 people and tested on pairs of 100 others (12 images each, 56x48, as many same as different pairs, the best
threshold): 0.58 for the cosine of pixels, 0.69 after whitening (100 components), 0.92 for three convolutions and ten
epochs (one seed). At 0.9: 0.59, 0.72, 0.93; at 1.0: 0.57, 0.67, 0.90.
"""

IMAGES_AT_ONCE = 64  # few enough for the cache, many enough to hide the cost of a call; the images do not depend on it

# Typical value and spread of every number of a person. Lengths: 1 is half the width of the image; y points down; the
# eyes are near y = -0.2. What is painted where it is positive (a beard) is typically below zero if few people have it.
IDENTITY: Mapping[str, tuple[float, float]] = {
    # head: an ellipse whose radius has low harmonics
    "head_width": (0.74, 0.04),
    "head_height": (0.96, 0.04),
    "head_egg": (-0.015, 0.02),
    "head_square": (0.005, 0.02),
    "head_jaw": (-0.035, 0.02),
    "head_corners": (0.015, 0.012),
    "head_lean": (0.0, 0.008),
    "cheek_bones": (0.3, 0.25),
    "chin_dimple": (-0.4, 0.6),
    "ear_size": (0.15, 0.03),
    "ear_height": (0.0, 0.04),
    "ear_out": (0.02, 0.03),
    # colours
    "skin_tone": (0.62, 0.2),
    "skin_warmth": (0.0, 0.03),
    "skin_red": (0.0, 0.02),
    "cheek_red": (0.0, 0.4),
    "hair_tone": (0.22, 0.22),
    "hair_red": (0.0, 0.06),
    "hair_grey": (-0.3, 0.5),
    # hair
    "hairline": (-0.62, 0.09),
    "hairline_curve": (0.25, 0.3),
    "hairline_peak": (0.0, 0.12),
    "hair_parting": (0.0, 0.25),
    "hair_fringe": (-0.3, 0.3),
    "hair_side": (0.06, 0.06),
    "hair_top": (0.14, 0.06),
    "hair_length": (0.25, 0.4),
    "hair_strands": (0.12, 0.06),
    "hair_curl": (0.0, 0.03),
    # brows
    "brow_height": (-0.43, 0.035),
    "brow_gap": (0.2, 0.03),
    "brow_length": (0.27, 0.03),
    "brow_thickness": (0.045, 0.014),
    "brow_tilt": (-0.02, 0.07),
    "brow_arch": (0.06, 0.04),
    "brow_darkness": (0.7, 0.18),
    # eyes
    "eye_distance": (0.36, 0.026),
    "eye_height": (-0.2, 0.02),
    "eye_width": (0.165, 0.018),
    "eye_opening": (0.07, 0.014),
    "eye_tilt": (-0.03, 0.08),
    "eye_uneven": (0.0, 0.01),
    "eye_crease": (0.35, 0.3),
    "eye_bags": (0.1, 0.25),
    "eye_depth": (0.25, 0.18),
    "iris_size": (0.074, 0.008),
    "iris_light": (0.35, 0.22),
    "iris_blue": (0.0, 0.35),
    "lashes": (0.7, 0.25),
    # nose
    "nose_length": (0.19, 0.04),
    "nose_width": (0.125, 0.024),
    "nose_bridge": (0.06, 0.014),
    "nose_tip": (0.07, 0.012),
    "nose_crook": (0.0, 0.012),
    "nostrils": (0.026, 0.006),
    # mouth
    "mouth_height": (0.52, 0.035),
    "mouth_width": (0.26, 0.035),
    "lip_upper": (0.05, 0.014),
    "lip_lower": (0.065, 0.016),
    "lip_bow": (0.3, 0.25),
    "lip_red": (0.12, 0.08),
    "mouth_curve": (0.0, 0.05),
    "mouth_lean": (0.0, 0.02),
    "philtrum": (0.15, 0.2),
    # marks
    "mole_1_x": (-0.3, 0.18),
    "mole_1_y": (0.25, 0.22),
    "mole_1_size": (0.012, 0.024),
    "mole_2_x": (0.3, 0.18),
    "mole_2_y": (0.2, 0.25),
    "mole_2_size": (0.0, 0.024),
    "freckles": (-0.3, 0.5),
    "freckle_phase": (0.0, 1.0),
    "wrinkles_forehead": (-0.1, 0.3),
    "wrinkles_mouth": (0.1, 0.25),
    # beard
    "beard": (-0.4, 0.6),
    "moustache": (-0.4, 0.6),
    "beard_line": (0.45, 0.12),
}

# Typical value and spread of every number of an image; the spread is times VARIATION.
IMAGE: Mapping[str, tuple[float, float]] = {
    # pose: sines of the angles; what is left of misalignment after the eyes are put in place
    "yaw": (0.0, 0.27),
    "pitch": (0.0, 0.16),
    "roll": (0.0, 0.05),
    "shift_x": (0.0, 0.03),
    "shift_y": (0.0, 0.03),
    "zoom": (1.0, 0.04),
    # light
    "light_x": (0.0, 0.35),
    "light_y": (-0.12, 0.2),
    "shine": (0.1, 0.12),
    "exposure": (1.0, 0.17),
    "cast_red": (0.0, 0.06),
    "cast_blue": (0.0, 0.06),
    "contrast": (1.0, 0.14),
    "shadow": (-0.2, 0.4),
    "shadow_x": (0.0, 1.0),
    "shadow_y": (0.0, 1.0),
    "shadow_offset": (0.3, 0.3),
    # expression
    "brow_lift": (0.0, 0.03),
    "frown": (0.0, 0.06),
    "eye_open": (1.0, 0.22),
    "gaze_x": (0.0, 0.03),
    "gaze_y": (0.0, 0.012),
    "smile": (0.03, 0.07),
    "mouth_open": (-0.01, 0.05),
    # the same person on another day
    "hair_shift": (0.0, 0.05),
    "hair_longer": (0.0, 0.12),
    "stubble": (0.0, 0.15),
    "make_up": (0.0, 0.05),
    # what covers the face, where positive
    "glasses": (-1.2, 1.0),
    "glasses_size": (0.2, 0.02),
    "sunglasses": (-1.8, 1.0),
    "hat": (-1.5, 1.0),
    "hat_height": (-0.58, 0.07),
    "scarf": (-1.6, 1.0),
    "scarf_height": (0.7, 0.1),
    "hand": (-1.5, 1.0),
    "hand_x": (0.0, 0.6),
    "hand_y": (0.6, 0.35),
    "cloth_light": (0.48, 0.2),
    "cloth_red": (0.0, 0.12),
    "cloth_blue": (0.0, 0.12),
    # around the face
    "wall_light": (0.48, 0.2),
    "wall_red": (0.0, 0.12),
    "wall_blue": (0.0, 0.12),
    "wall_slope_x": (0.0, 0.12),
    "wall_slope_y": (0.0, 0.12),
    "wall_edge": (0.0, 0.8),
    "wall_edge_lean": (0.0, 0.4),
    "wall_step": (0.0, 0.2),
    # the camera
    "blur": (0.35, 0.25),
    "noise": (0.02, 0.012),
}


def draw_faces(
    people: int, images_per_person: int, size: tuple[int, int], seeds: Seeds, first_person: int = 0
) -> tuple[Tensor, Tensor]:
    """Draw faces: the same ones for the same seeds.

    Person p depends on (seeds, p) alone and image j of p on (seeds, p, j) alone, so more people or more images
    change none of the earlier ones. Numbers come from uniform draws, and pixels from operations that are rounded in
    one way only (no exponential, no sine): the bytes do not depend on how many images are drawn at once either.

    Args:
        people: How many people.
        images_per_person: How many images of each.
        size: Rows and columns; the face is made for 7 to 6, such as (56, 48), and other shapes show more around it.
        seeds: The seeds of the run.
        first_person: Number of the first person, so that other people can be drawn later.

    Returns:
        Images, uint8 `[people * images_per_person, 3, rows, columns]`, and person numbers, int64
        `[people * images_per_person]`, both ordered by person.
    """
    persons = range(first_person, first_person + people)
    images = torch.empty(people * images_per_person, 3, *size, dtype=torch.uint8)
    identities = [_bell(len(IDENTITY), seeds.generator("face", person)) for person in persons]
    scenes = [(person, image) for person in persons for image in range(images_per_person)]

    def draw_chunk(start: int) -> None:
        chunk = scenes[start : start + IMAGES_AT_ONCE]
        generators = [seeds.generator("face", *scene) for scene in chunk]
        parameters = _scaled(IDENTITY, [identities[person - first_person] for person, _ in chunk], 1.0)
        parameters |= _scaled(IMAGE, [_bell(len(IMAGE), generator) for generator in generators], VARIATION)
        # The last draw of each generator, so that the scene is the same at every size.
        noise = torch.stack([torch.rand(3, *size, generator=generator) for generator in generators])
        images[start : start + len(chunk)] = draw(parameters, noise)

    # Threads take whole chunks: were each operation divided between them, they would wait for each other thousands of
    # times, which on a busy machine takes minutes.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(draw_chunk, range(0, len(scenes), IMAGES_AT_ONCE)))  # a list, so that errors are raised
    finally:
        torch.set_num_threads(threads)
    return images, torch.tensor([person for person, _ in scenes], dtype=torch.int64)


def _bell(count: int, generator: Generator) -> Tensor:
    """Return bell-shaped numbers (sums of three uniform ones) of mean 0, variance 1, within 3, float64 `[count]`."""
    first, second, third = torch.rand(3, count, dtype=torch.float64, generator=generator).unbind()
    return 2 * (first + second + third) - 3


def _scaled(table: Mapping[str, tuple[float, float]], standardised: list[Tensor], scale: float) -> dict[str, Tensor]:
    """Return each number of a table by name, float32 `[images, 1, 1]`, from a row of standardised values per image."""
    typical, spread = torch.tensor(list(table.values()), dtype=torch.float64).unbind(1)
    values = (typical + scale * spread * torch.stack(standardised)).float()
    return dict(zip(table, values.view(-1, len(table), 1, 1).unbind(1), strict=True))
