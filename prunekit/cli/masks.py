"""``prunekit masks``: look at mask files, compare, combine, apply and convert them."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from prunekit.masks.masks import Masks
    from prunekit.masks.overlap import MaskOverlap

_BAR = 20  # characters


@click.group()
def masks() -> None:
    """Look at mask files, compare, combine, apply and convert them."""


_out = click.option("-o", "--out", required=True, type=click.Path(), help="The file to write.")
_file = click.Path()


@masks.command()
@click.argument("file", type=_file)
def show(file: str) -> None:
    """Show shape, density and pattern of every mask in FILE, and what the file says of itself."""
    import json

    from prunekit.masks.masks import load_masks

    loaded = load_masks(file)
    for key, value in loaded.info.items():
        click.echo(f"{key}: {value if isinstance(value, str) else json.dumps(value)}")
    _print_masks(loaded)


@masks.command()
@click.argument("first", type=_file)
@click.argument("second", type=_file)
def diff(first: str, second: str) -> None:
    """Show, mask by mask, what FIRST and SECOND keep in common and where they differ."""
    from prunekit.cli.tables import make_table, print_table
    from prunekit.masks.masks import load_masks

    compared = load_masks(first).compare(load_masks(second))
    numbers = ("both", "only first", "only second", "neither", "overlap", "Hamming")
    table = make_table("Masks compared", "parameter", *numbers, numbers=numbers)
    for name, comparison in compared.items():
        table.add_row(name, *_meeting(comparison))
    table.add_section()
    table.add_row("total", *_meeting(_sum(list(compared.values()))))
    print_table(table)


@masks.command()
@click.argument("first", type=_file)
@click.argument("second", type=_file)
@_out
@click.option(
    "--keep",
    "operation",
    type=click.Choice(["and", "or", "minus"]),
    default="and",
    show_default=True,
    help="What both keep, what either keeps, or what the first keeps and the second drops.",
)
def merge(first: str, second: str, out: str, operation: str) -> None:
    """Combine the masks in FIRST and SECOND, which must be of the same weights."""
    import operator

    from prunekit.masks.masks import Masks, load_masks

    operations = {"and": operator.and_, "or": operator.or_, "minus": operator.sub}
    one, other = load_masks(first), load_masks(second)
    merged: Masks = operations[operation](one, other)
    info = {"merged": operation, "first": dict(one.info), "second": dict(other.info)}
    Masks(merged.tensors, info).save(out)
    _say_written(out, merged)


@masks.command()
@click.argument("model", type=_file)
@click.argument("file", type=_file)
@_out
@click.option("--sparse", is_flag=True, help="Store kept values and packed masks: a sparse checkpoint.")
def apply(model: str, file: str, out: str, sparse: bool) -> None:
    """Write the weights of MODEL with those that the masks in FILE drop set to 0.0."""
    from prunekit.masks.masks import load_masks
    from prunekit.masks.weight_files import load_weights, save_sparse, save_weights

    weights, loaded = load_weights(model), load_masks(file)
    loaded.apply(weights)
    if sparse:
        save_sparse(out, weights, loaded)
    else:
        save_weights(out, weights)
    _say_written(out, loaded)


@masks.command()
@click.argument("file", type=_file)
@_out
@click.option(
    "--form",
    type=click.Choice(["packed", "bool", "torch-prune"]),
    default="packed",
    show_default=True,
    help="Eight weights to a byte; plain bool; or a state dict as torch.nn.utils.prune has it.",
)
@click.option("--from-zeros", is_flag=True, help="FILE is a model; what is zero in it is dropped.")
@click.option("--weights", type=_file, help="The model's weights, for --form torch-prune.")
def convert(file: str, out: str, form: str, from_zeros: bool, weights: str | None) -> None:
    """Write the masks in FILE, whoever wrote it, in another form."""
    from prunekit.masks.foreign import torch_prune_state
    from prunekit.masks.masks import Masks, load_masks
    from prunekit.masks.weight_files import load_weights, save_weights

    if (form == "torch-prune") != (weights is not None):
        raise click.UsageError("--form torch-prune needs --weights MODEL, and no other form takes it")
    loaded = Masks.from_zeros(load_weights(file)) if from_zeros else load_masks(file)
    if weights is not None:
        save_weights(out, torch_prune_state(loaded.tensors, load_weights(weights)))
    else:
        loaded.save(out, packed=form == "packed")
    _say_written(out, loaded)


@masks.command()
@click.argument("model", type=_file)
@click.argument("file", type=_file)
def check(model: str, file: str) -> None:
    """Check that the masks in FILE fit the weights of MODEL, and that what they drop is zero there."""
    from prunekit.errors import MaskError
    from prunekit.masks.masks import load_masks
    from prunekit.masks.matching import match_names
    from prunekit.masks.weight_files import load_weights

    matched = match_names(load_masks(file).tensors, load_weights(model))
    alive = {name: int(weight[~mask].count_nonzero()) for name, (weight, mask) in matched.items()}
    if problems := [f"{name} has {count:,}" for name, count in alive.items() if count]:
        raise MaskError(
            f"{model} has dropped weights that are not zero: {'; '.join(problems)}; "
            f"set them to zero with: prunekit masks apply {model} {file} -o OUT"
        )
    click.echo(f"{len(matched)} masks fit {model}, and every weight that they drop is zero")


def _say_written(path: str, masks: "Masks") -> None:
    click.echo(f"{path}: {len(masks.tensors)} masks, density {masks.density():.6f}")


def _print_masks(masks: "Masks") -> None:
    from prunekit.cli.tables import make_table, print_table
    from prunekit.masks.inspection import empty_lines, find_pattern

    numbers = ("shape", "kept", "weights", "density", "empty rows", "empty columns")
    table = make_table("Masks", "parameter", *numbers[:4], "", *numbers[4:], "pattern", numbers=numbers)
    for name, mask in masks.tensors.items():
        shape = " x ".join(map(str, mask.shape))
        rows, columns = empty_lines(mask)
        figures = _figures(int(mask.sum()), mask.numel())
        table.add_row(name, shape, *figures, f"{rows:,}", f"{columns:,}", find_pattern(mask) or "-")
    table.add_section()
    kept = sum(int(mask.sum()) for mask in masks.tensors.values())
    table.add_row("total", "", *_figures(kept, sum(mask.numel() for mask in masks.tensors.values())))
    print_table(table)


def _figures(kept: int, weights: int) -> tuple[str, str, str, str]:
    density = kept / weights if weights else 1.0
    filled = round(density * _BAR)
    return f"{kept:,}", f"{weights:,}", f"{density:.6f}", "█" * filled + "·" * (_BAR - filled)


def _meeting(comparison: "MaskOverlap") -> tuple[str, ...]:
    counts = (comparison.both, comparison.only_first, comparison.only_second, comparison.neither)
    return (*(f"{count:,}" for count in counts), f"{comparison.overlap:.6f}", f"{comparison.hamming:,}")


def _sum(comparisons: "list[MaskOverlap]") -> "MaskOverlap":
    from prunekit.masks.overlap import MaskOverlap

    parts = ("both", "only_first", "only_second", "neither")
    return MaskOverlap(*(sum(getattr(comparison, part) for comparison in comparisons) for part in parts))
