"""Pixels of a face from its numbers: soft layers painted back to front, many images at once.

Everything is made of what `face_canvas` offers, so that the bytes of an image depend on its numbers alone. This module
must not know where the numbers come from nor what they are like in the population.
"""

import torch
from torch import Tensor

from .face_canvas import Canvas, Head, Parameters, ellipse, photograph, rgb, wave


def draw(parameters: Parameters, noise: Tensor) -> Tensor:
    """Draw faces.

    Args:
        parameters: Every number that a face needs, float32 `[images, 1, 1]`, by the names in `faces`.
        noise: Uniform in 0 to 1, float32 `[images, 3, rows, columns]`; its size is that of the images.

    Returns:
        Images, uint8 `[images, 3, rows, columns]`.
    """
    canvas = Canvas(parameters, (noise.shape[2], noise.shape[3]))
    head = Head(canvas, parameters)
    skin, hair = skin_colour(parameters), hair_colour(parameters)
    draw_background(canvas, parameters)
    draw_back_of_hair(head, parameters, hair)
    outline = draw_head(head, parameters, skin)
    draw_marks(head, parameters, skin, outline)
    draw_beard(head, parameters, hair, outline)
    draw_mouth(head, parameters, skin)
    draw_nose(head, parameters)
    for side in (-1, 1):
        draw_eye(head, parameters, skin, side)
        draw_brow(head, parameters, hair, outline, side)
    draw_front_of_hair(head, parameters, hair, outline)
    draw_light(head, parameters)
    draw_covers(head, parameters, skin)
    return photograph(canvas, parameters, noise)


def skin_colour(p: Parameters) -> Tensor:
    """Return the colour of the skin: from dark to light, with a warmth and a redness."""
    tone = p["skin_tone"].clamp(0, 1)
    warmth, red = p["skin_warmth"], p["skin_red"] + 0.3 * p["make_up"]
    return rgb(0.34 + 0.58 * tone + red, 0.2 + 0.55 * tone + 0.3 * warmth, 0.14 + 0.5 * tone - warmth)


def hair_colour(p: Parameters) -> Tensor:
    """Return the colour of the hair: from black over brown to blond, redder, or grey."""
    tone, grey = p["hair_tone"].clamp(0, 1), p["hair_grey"].clamp(0, 1)
    colour = rgb(0.08 + 0.8 * tone + p["hair_red"], 0.06 + 0.6 * tone, 0.05 + 0.3 * tone - 0.5 * p["hair_red"])
    return colour + (0.66 - colour) * grey.unsqueeze(1)


def cloth_colour(p: Parameters) -> Tensor:
    """Return the colour of the accessories in one image."""
    return rgb(p["cloth_light"] + p["cloth_red"], p["cloth_light"], p["cloth_light"] + p["cloth_blue"])


def draw_background(canvas: Canvas, p: Parameters) -> None:
    """Paint a sloping wall with an edge across, and the shoulders."""
    slope = p["wall_slope_x"] * canvas.x + p["wall_slope_y"] * canvas.y
    edge = canvas.cover(canvas.x + p["wall_edge_lean"] * canvas.y - p["wall_edge"], 0.1) * p["wall_step"]
    wall = rgb(p["wall_light"] + p["wall_red"], p["wall_light"], p["wall_light"] + p["wall_blue"])
    canvas.colours += wall + (slope + edge).unsqueeze(1)
    canvas.paint(canvas.cover(ellipse(canvas.x, canvas.y - 1.65, 1.3, 0.7)), cloth_colour(p))


def strands(x: Tensor, y: Tensor, p: Parameters) -> Tensor:
    """Return the light and dark of strands of hair, around 1."""
    return 1 + p["hair_strands"] * (wave(3.1 * x + 0.6 * wave(0.9 * y)) + 0.6 * wave(7.3 * x + 1.7 * y))


def draw_back_of_hair(head: Head, p: Parameters, hair: Tensor) -> None:
    """Paint the hair that is seen behind the head, down to its length."""
    canvas = head.canvas
    x, y = head.around(0.0, -0.15, -0.1)
    curl = p["hair_curl"] * wave(4 * y + 2 * x)
    below = (
        y.clamp(max=0) / (0.72 * p["head_height"] + p["hair_top"])
        + (y - p["hair_length"] - p["hair_longer"]).clamp(min=0) / 0.25
    )
    coverage = canvas.cover(ellipse(x, below, p["head_width"] + p["hair_side"].clamp(min=-0.02) + curl, 1.0), 0.03)
    canvas.paint(coverage, 0.75 * hair * strands(x, y, p).unsqueeze(1))


def draw_head(head: Head, p: Parameters, skin: Tensor) -> Tensor:
    """Paint neck, ears and head; return the distance to the outline of the head."""
    canvas = head.canvas
    x, y = head.around(0.0, 1.0, -0.1)
    canvas.paint(canvas.cover(torch.maximum(x.abs() - 0.55 * p["head_width"], -y - 0.6)), 0.72 * skin)
    for side in (-1, 1):
        x, y = head.around(side * (p["head_width"] + p["ear_out"]), -0.05 + p["ear_height"], "ear")
        canvas.paint(canvas.cover(ellipse(x, y, 0.55 * p["ear_size"], 1.2 * p["ear_size"])), 0.88 * skin)
        canvas.darken(0.3 * canvas.cover(ellipse(x, y, 0.28 * p["ear_size"], 0.75 * p["ear_size"]), 0.03))
    x, y = head.around(0.0, 0.05, 0.12)
    x, y = x / p["head_width"], y / p["head_height"]
    radius = (x.square() + y.square()).sqrt().clamp(min=0.01)
    sine, cosine = y / radius, x / radius
    square = sine.square()
    harmonics = (
        p["head_egg"] * sine
        + p["head_square"] * (1 - 2 * square)
        + p["head_jaw"] * sine * (3 - 4 * square)
        + p["head_corners"] * (1 - 8 * square * (1 - square))
        + p["head_lean"] * cosine * sine
    )
    outline = (radius - 1 - harmonics) * p["head_width"]
    canvas.paint(canvas.cover(outline), skin)
    canvas.darken(canvas.cover(outline) * canvas.cover(-outline - 0.05, 0.2) * 0.18)
    return outline


def draw_marks(head: Head, p: Parameters, skin: Tensor, outline: Tensor) -> None:
    """Paint the permanent features of the skin: red cheeks, cheek bones, freckles, moles and wrinkles."""
    canvas = head.canvas
    for side in (-1, 1):
        x, y = head.around(side * 0.42, 0.22, "cheek")
        cheek = canvas.cover(ellipse(x, y, 0.14, 0.12), 0.25)
        canvas.paint(
            cheek * (p["cheek_red"] + p["make_up"]).clamp(0, 1) * 0.4, skin * rgb(1.0 + 0 * p["yaw"], 0.62, 0.6)
        )
        freckles = (wave(9 * x + p["freckle_phase"] + y) + wave(8 * y - p["freckle_phase"] + 2 * x) - 1).clamp(0, 1)
        canvas.darken(cheek * freckles * p["freckles"].clamp(0, 1) * 0.5)
        x, y = head.around(side * 0.52, 0.42, "cheek")
        hollow = canvas.cover(ellipse(x + side * 0.3 * y, y, 0.09, 0.2), 0.2)
        canvas.darken(hollow * p["cheek_bones"].clamp(0, 1) * 0.35)
        x, y = head.around(side * (p["mouth_width"] + 0.06), 0.4, "mouth")
        fold = canvas.cover((x - side * 0.5 * y).abs() - 0.008, 0.03) * canvas.cover(y.abs() - 0.13, 0.1)
        canvas.darken(fold * (p["wrinkles_mouth"] + 2 * p["smile"]).clamp(0, 1) * 0.5)
    x, y = head.around(0.0, -0.58, "brow")
    lines = wave(9 * y + x.square()).clamp(min=0) * canvas.cover(ellipse(x, y, 0.4, 0.1), 0.15)
    canvas.darken(lines * (p["wrinkles_forehead"] + 4 * p["brow_lift"]).clamp(0, 1) * 0.3)
    for mole in ("mole_1", "mole_2"):
        x, y = head.around(p[f"{mole}_x"], p[f"{mole}_y"], "cheek")
        size = p[f"{mole}_size"]
        coverage = canvas.cover(ellipse(x, y, size.clamp(min=0.005), size.clamp(min=0.005)), 0.01)
        canvas.paint(coverage * (size > 0) * canvas.cover(outline) * 0.75, 0.35 * skin)
    x, y = head.around(0.0, 0.86, "mouth")
    canvas.darken(canvas.cover(ellipse(x, y, 0.02, 0.05), 0.05) * p["chin_dimple"].clamp(0, 1) * 0.5)


def draw_beard(head: Head, p: Parameters, hair: Tensor, outline: Tensor) -> None:
    """Paint beard and moustache, from stubble to full."""
    canvas = head.canvas
    x, y = head.around(0.0, p["beard_line"], "cheek")
    jaw = canvas.cover(-y + 0.3 - 1.6 * x.square(), 0.15) * canvas.cover(outline - 0.02, 0.04)
    texture = 0.85 + 0.15 * wave(8 * x) * wave(6 * y)
    canvas.paint(jaw * texture * (p["beard"] + p["stubble"]).clamp(0, 0.85), 0.9 * hair)
    x, y = head.around(0.0, p["mouth_height"] - 0.1, "mouth")
    lip = canvas.cover(ellipse(x, y - 0.9 * x.square(), 0.9 * p["mouth_width"], 0.05), 0.04)
    canvas.paint(lip * texture * (p["moustache"] + p["stubble"]).clamp(0, 0.9), 0.9 * hair)


def draw_mouth(head: Head, p: Parameters, skin: Tensor) -> None:
    """Paint lips around a line that a smile bends, open where the mouth is."""
    canvas = head.canvas
    smile, opening = p["smile"], p["mouth_open"].clamp(0, 0.2)
    width = p["mouth_width"] * (1 + 1.2 * smile - opening)
    x, y = head.around(0.0, p["mouth_height"], "mouth")
    across = x / width
    arch = (1 - across.square()).clamp(min=-1)
    y = y - (p["mouth_curve"] + smile) * 0.7 * (arch - 0.5) - p["mouth_lean"] * across
    bow = 1 - p["lip_bow"].clamp(0, 1) * (1 - 5 * across.abs()).clamp(min=0)
    top = -p["lip_upper"].clamp(min=0.015) * arch * bow - opening * 0.4 * arch
    bottom = p["lip_lower"].clamp(min=0.015) * arch + opening * 0.6 * arch
    red = (p["lip_red"] + p["make_up"]).clamp(0, 0.5)
    lip = skin * rgb(0.92 + 0 * red, 0.72 - red, 0.72 - 0.8 * red)
    canvas.paint(canvas.cover(torch.maximum(top - y, y - bottom)), lip)
    canvas.darken(0.16 * canvas.cover(torch.maximum(top - y, y + 0.4 * opening * arch)))
    gap = opening * arch
    inside = torch.maximum(-0.4 * gap - 0.008 - y, y - 0.6 * gap - 0.008)
    inside = torch.maximum(inside, (across.abs() - 1) * width)
    canvas.paint(0.85 * canvas.cover(inside), 0.25 * lip)
    teeth = torch.maximum(inside + 0.012, y - 0.1 * gap)
    canvas.paint(canvas.cover(teeth) * (opening * 40).clamp(0, 1), rgb(0.93 + 0 * red, 0.9, 0.84))
    x, y = head.around(0.0, p["mouth_height"] + p["lip_lower"] + 0.07, "mouth")
    canvas.darken(0.2 * canvas.cover(ellipse(x, y - opening * 0.6, 0.6 * width, 0.02), 0.08))
    x, y = head.around(0.0, p["mouth_height"] - p["lip_upper"] - 0.07, "mouth")
    canvas.darken(canvas.cover(ellipse(x, y, 0.018, 0.04), 0.03) * p["philtrum"].clamp(0, 1) * 0.5)


def draw_nose(head: Head, p: Parameters) -> None:
    """Shade the side of the nose that is away from the light, and paint wings, tip and nostrils."""
    canvas = head.canvas
    length = p["nose_length"]
    x, y = head.around(p["nose_crook"], length, "nose")
    root_x, root_y = head.around(0.0, p["eye_height"], "nose_root")
    down = (root_y / (length - p["eye_height"])).clamp(0, 1)
    along = root_x + (x - root_x) * down
    half = p["nose_bridge"] + (p["nose_tip"] - p["nose_bridge"]) * down
    ridge = canvas.cover(along.abs() - half, 0.04) * canvas.cover(y, 0.08) * canvas.cover(-root_y - 0.05, 0.1)
    away = (along / half).clamp(-1, 1) * p["light_x"]
    canvas.colours *= (1 + ridge * (0.06 - 0.45 * away)).unsqueeze(1)
    for side in (-1, 1):
        wall = canvas.cover((along - side * half).abs() - 0.012, 0.05) * canvas.cover(y, 0.06) * canvas.cover(-root_y)
        canvas.darken(wall * (0.16 - 0.3 * side * p["light_x"]).clamp(0, 0.5))
        wing_x, wing_y = head.around(side * 0.75 * p["nose_width"], length + 0.015, "mouth")
        wing = ellipse(wing_x, wing_y, 0.35 * p["nose_width"], 0.05)
        canvas.darken(0.28 * canvas.cover(wing.abs() - 0.008, 0.025) * canvas.cover(-side * wing_x, 0.05))
        hole_x, hole_y = head.around(side * 0.5 * p["nose_width"], length + 0.05, 0.7)
        canvas.darken(0.65 * canvas.cover(ellipse(hole_x, hole_y, 1.3 * p["nostrils"], 0.7 * p["nostrils"]), 0.01))
    canvas.darken(0.25 * canvas.cover(ellipse(x, y - 0.075, 0.7 * p["nose_width"], 0.018), 0.04))
    canvas.colours *= (
        1 + canvas.cover(ellipse(x, y, 0.5 * p["nose_tip"], 0.03), 0.05) * p["shine"].clamp(0, 1)
    ).unsqueeze(1)


def draw_eye(head: Head, p: Parameters, skin: Tensor, side: int) -> None:
    """Paint socket, white, iris, pupil, glint, lid, lashes and the area under one eye."""
    canvas = head.canvas
    x, y = head.around(side * p["eye_distance"], p["eye_height"] + side * p["eye_uneven"], "eye")
    y = y + side * p["eye_tilt"] * x
    width, height = p["eye_width"], p["eye_opening"].clamp(min=0.03) * p["eye_open"].clamp(0.12, 1.6)
    canvas.darken(canvas.cover(ellipse(x, y + 0.05, 1.25 * width, 0.09), 0.16) * p["eye_depth"].clamp(0, 1) * 0.6)
    canvas.darken(canvas.cover(ellipse(x, y - 0.13, 0.8 * width, 0.012), 0.05) * p["eye_bags"].clamp(0, 1) * 0.45)
    arch = (1 - (x / width).square()).clamp(min=-1)
    upper, lower = -height * arch - y, y - 0.75 * height * arch
    opening = canvas.cover(torch.maximum(upper, lower))
    canvas.paint(opening, rgb(0.92 + 0 * height, 0.9, 0.88))
    gaze_x, gaze_y = x - p["gaze_x"], y - p["gaze_y"] + 0.01
    light, blue = p["iris_light"].clamp(0.05, 1), p["iris_blue"].clamp(-0.2, 1)
    iris = rgb(0.55 * light * (1 - 0.7 * blue), 0.45 * light, 0.25 * light + 0.6 * light * blue)
    size = p["iris_size"]
    canvas.paint(opening * canvas.cover(ellipse(gaze_x, gaze_y, size, size)), iris)
    canvas.paint(opening * canvas.cover(ellipse(gaze_x, gaze_y, 0.45 * size, 0.45 * size)), 0.1 * iris)
    glint = canvas.cover(ellipse(gaze_x + 0.025, gaze_y + 0.025, 0.016, 0.016))
    canvas.paint(0.9 * opening * glint, rgb(1.0 + 0 * size, 1.0, 1.0))
    lid = canvas.cover(upper.abs() - 0.012, 0.01) * canvas.cover(x.abs() - width, 0.03)
    canvas.paint(lid * p["lashes"].clamp(0.2, 1), 0.2 * skin)
    canvas.darken(canvas.cover(lower.abs() - 0.005, 0.02) * canvas.cover(x.abs() - width, 0.03) * 0.3)
    crease = canvas.cover((upper - 0.045).abs() - 0.006, 0.02) * canvas.cover(x.abs() - width, 0.05)
    canvas.darken(crease * p["eye_crease"].clamp(0, 1) * 0.5)


def draw_brow(head: Head, p: Parameters, hair: Tensor, outline: Tensor, side: int) -> None:
    """Paint one brow: an arched bar, thinner outwards."""
    canvas = head.canvas
    length = p["brow_length"]
    x, y = head.around(side * (p["brow_gap"] + 0.5 * length), p["brow_height"] - p["brow_lift"], "brow")
    along = 2 * side * x / length
    y = (
        y
        - (p["brow_tilt"] - p["frown"]).clamp(-0.1, 0.1) * along
        + p["brow_arch"].clamp(0, 0.12) * (1 - along.square())
    )
    thickness = p["brow_thickness"].clamp(min=0.015) * (1 - 0.35 * along)
    coverage = canvas.cover(torch.maximum(y.abs() - thickness, (along.abs() - 1) * 0.5 * length), 0.02)
    canvas.paint(coverage * canvas.cover(outline + 0.03) * p["brow_darkness"].clamp(0.15, 1), 0.7 * hair)


def draw_front_of_hair(head: Head, p: Parameters, hair: Tensor, outline: Tensor) -> None:
    """Paint the hair above the hairline, with a parting, a peak and a fringe."""
    canvas = head.canvas
    x, y = head.around(0.0, p["hairline"] + p["hair_shift"], "hair")
    beside = x - p["hair_parting"]
    line = p["hairline_curve"] * beside.square() + p["hairline_peak"] * (1 - 4 * beside.abs()).clamp(min=0)
    line = line + p["hair_fringe"].clamp(min=0) * 0.5 * wave(2.5 * x) * (1 - x.square()).clamp(min=0)
    line = line + 0.5 * p["hair_curl"] * wave(5 * x)
    # Hair may hide the brows, not the eyes.
    line = torch.minimum(line, -0.3 - p["hairline"] + beside.square())
    coverage = canvas.cover(y - line, 0.04) * canvas.cover(outline - 0.03)
    gloss = 1 + 0.25 * canvas.cover((y + 0.2).abs() - 0.03, 0.15)
    canvas.paint(coverage, hair * (strands(x, y, p) * gloss).unsqueeze(1))


def draw_light(head: Head, p: Parameters) -> None:
    """Shade the round head by the direction of the light, and lay the edge of a shadow over it."""
    canvas = head.canvas
    x, y = head.around(0.0, 0.05, 0.12)
    round_x, round_y = (x / 0.8).clamp(-1.2, 1.2), (y / 1.1).clamp(-1.2, 1.2)
    shade = 1 + 0.75 * (p["light_x"] * round_x + p["light_y"] * round_y) - 0.12 * (round_x.square() + round_y.square())
    forehead = canvas.cover(ellipse(x - 0.5 * p["light_x"], y + 0.45, 0.15, 0.1), 0.3)
    shade = shade + forehead * p["shine"].clamp(min=0)
    edge = p["shadow_x"] * x + p["shadow_y"] * y + p["shadow_offset"]
    shade = shade * (1 - p["shadow"].clamp(0, 0.75) * canvas.cover(edge, 0.1))
    canvas.colours *= (1 + (shade.clamp(0.15, 1.8) - 1) * canvas.painted).unsqueeze(1)


def draw_covers(head: Head, p: Parameters, skin: Tensor) -> None:
    """Paint glasses, a hat, a scarf or a hand over the face in some images."""
    canvas = head.canvas
    cloth = cloth_colour(p)
    dark = (p["sunglasses"] > 0).float()
    worn = torch.maximum((p["glasses"] > 0).float(), dark)
    frame = 0.3 * cloth
    for side in (-1, 1):
        x, y = head.around(side * 0.36, -0.18, 0.62)
        size = p["glasses_size"] * (1 + 0.25 * dark)
        lens = ellipse(x, y, 1.15 * size, 0.85 * size)
        canvas.paint(canvas.cover(lens) * (0.9 * dark + 0.06 * worn), frame)
        canvas.paint(canvas.cover(lens.abs() - 0.018) * worn, frame)
        x, y = head.around(side * 0.68, -0.2, 0.3)
        canvas.paint(canvas.cover(torch.maximum(x.abs() - 0.1, y.abs() - 0.02)) * worn, frame)
    x, y = head.around(0.0, -0.2, 0.65)
    canvas.paint(canvas.cover(torch.maximum(x.abs() - 0.14, y.abs() - 0.015)) * worn, frame)
    x, y = head.around(0.0, p["hat_height"], 0.3)
    bent = y - 0.2 * x.square()
    hat = torch.maximum(bent, x.abs() - 0.95) + 0.02 * wave(4 * x)
    canvas.paint(canvas.cover(hat) * (p["hat"] > 0), cloth * (1 + 0.1 * wave(3 * y)).unsqueeze(1))
    canvas.darken(canvas.cover(bent.abs() - 0.02, 0.05) * (p["hat"] > 0) * canvas.cover(x.abs() - 0.9) * 0.4)
    x, y = head.around(0.0, p["scarf_height"], 0.45)
    scarf = canvas.cover(-y - 0.15 * x.square()) * (p["scarf"] > 0)
    canvas.paint(scarf, (1 - cloth) * (1 + 0.15 * wave(4 * y + x)).unsqueeze(1))
    x, y = canvas.x - p["hand_x"], canvas.y - p["hand_y"]
    lean = x - p["hand_x"] * y
    fingers = 0.03 * wave(6 * lean)
    palm = torch.maximum(ellipse(lean, y.clamp(max=0), 0.28, 0.35) + fingers, -y - 0.4)
    canvas.paint(canvas.cover(palm) * (p["hand"] > 0), 0.85 * skin * (1 + 0.12 * wave(6 * lean + 0.5)).unsqueeze(1))
