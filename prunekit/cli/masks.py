"""``prunekit masks``: show, check, compare, combine, apply and convert mask files."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from prunekit.masks.masks import Masks
    from prunekit.masks.overlap import MaskOverlap

_BAR = 20  # characters


@click.group()
def masks() -> None:
    """Show, check, compare, combine, apply and convert mask files."""


_out = click.option("-o", "--out", required=True, type=click.Path(), help="File to write.")
_file = click.Path()


@masks.command()
@click.argument("file", type=_file)
def show(file: str) -> None:
    """Show shapes, densities and patterns of masks.

    Empty rows of a mask are dead outputs, and empty columns are unused inputs. The facts that FILE stores with the
    masks, such as criterion and seed, are printed first.
    """
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
    """Compare two mask files.

    For each mask, count the weights that both FIRST and SECOND keep, that only one keeps, and that neither keeps.
    Overlap is the Jaccard index: weights kept by both / weights kept by either. Hamming is the number of weights on
    which the masks differ.
    """
    from prunekit.cli.tables import make_table, print_table
    from prunekit.masks.masks import load_masks
    from prunekit.masks.overlap import total_overlap

    overlaps = load_masks(first).compare(load_masks(second))
    numbers = ("both", "only first", "only second", "neither", "overlap", "Hamming")
    table = make_table("Weights kept by", "parameter", *numbers, numbers=numbers)
    for name, overlap in overlaps.items():
        table.add_row(name, *_overlap_figures(overlap))
    table.add_section()
    table.add_row("total", *_overlap_figures(total_overlap(overlaps.values())))
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
    help="and: weights that both keep; or: that either keeps; minus: that FIRST keeps and SECOND drops.",
)
def merge(first: str, second: str, out: str, operation: str) -> None:
    """Combine two mask files.

    The masks of FIRST and SECOND must have the same names and shapes.
    """
    import operator

    from prunekit.masks.masks import Masks, load_masks

    operations = {"and": operator.and_, "or": operator.or_, "minus": operator.sub}
    one, other = load_masks(first), load_masks(second)
    merged: Masks = operations[operation](one, other)
    info = {"merged": operation, "first": dict(one.info), "second": dict(other.info)}
    Masks(merged.tensors, info).save(out)
    _report_written(out, merged)


@masks.command()
@click.argument("model", type=_file)
@click.argument("file", type=_file)
@_out
@click.option("--sparse", is_flag=True, help="Write a sparse checkpoint: kept values and packed masks.")
def apply(model: str, file: str, out: str, sparse: bool) -> None:
    """Write a model with its dropped weights set to 0.0.

    MODEL is a safetensors file, sparse checkpoint or state dict, and FILE has the masks.
    """
    from prunekit.masks.masks import load_masks
    from prunekit.masks.weight_files import load_weights, save_sparse, save_weights

    weights, loaded = load_weights(model), load_masks(file)
    loaded.apply(weights)
    if sparse:
        save_sparse(out, weights, loaded)
    else:
        save_weights(out, weights)
    _report_written(out, loaded)


@masks.command()
@click.argument("file", type=_file)
@_out
@click.option(
    "--form",
    type=click.Choice(["packed", "bool", "torch-prune"]),
    default="packed",
    show_default=True,
    help="packed: 1 bit per weight; bool: 1 byte per weight; torch-prune: a state dict as torch.nn.utils.prune makes.",
)
@click.option("--from-zeros", is_flag=True, help="FILE is a model; drop the weights that are zero in it.")
@click.option("--weights", type=_file, help="The model's weights; --form torch-prune needs them.")
def convert(file: str, out: str, form: str, from_zeros: bool, weights: str | None) -> None:
    """Write masks in another form.

    FILE may be a mask file of prunekit or of another tool, or a pruned model.
    """
    from prunekit.masks.foreign import torch_prune_state
    from prunekit.masks.masks import Masks, load_masks
    from prunekit.masks.weight_files import load_weights, save_weights

    if (form == "torch-prune") != (weights is not None):
        raise click.UsageError("--weights MODEL is required with --form torch-prune and not allowed with other forms")
    loaded = Masks.from_zeros(load_weights(file)) if from_zeros else load_masks(file)
    if weights is not None:
        save_weights(out, torch_prune_state(loaded.tensors, load_weights(weights)))
    else:
        loaded.save(out, packed=form == "packed")
    _report_written(out, loaded)


@masks.command()
@click.argument("model", type=_file)
@click.argument("file", type=_file)
def check(model: str, file: str) -> None:
    """Check that all dropped weights of a model are zero.

    The masks in FILE must fit the weights of MODEL.
    """
    from prunekit.errors import MaskError
    from prunekit.masks.masks import load_masks
    from prunekit.masks.matching import nonzero_dropped
    from prunekit.masks.weight_files import load_weights

    counts = nonzero_dropped(load_masks(file).tensors, load_weights(model))
    if problems := [f"{name} has {count:,}" for name, count in counts.items() if count]:
        raise MaskError(
            f"{model} has dropped weights that are not zero: {'; '.join(problems)}; "
            f"set them to zero with: prunekit masks apply {model} {file} -o OUT"
        )
    click.echo(f"{_counted(len(counts))} checked: all dropped weights of {model} are zero")


def _report_written(path: str, masks: "Masks") -> None:
    click.echo(f"{path}: {_counted(len(masks.tensors))}, density {masks.density():.6f}")


def _counted(masks: int) -> str:
    return f"{masks} mask{'' if masks == 1 else 's'}"


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


def _overlap_figures(overlap: "MaskOverlap") -> tuple[str, ...]:
    counts = (overlap.both, overlap.only_first, overlap.only_second, overlap.neither)
    return (*(f"{count:,}" for count in counts), f"{overlap.overlap:.6f}", f"{overlap.hamming:,}")
