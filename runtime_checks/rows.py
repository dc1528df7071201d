"""What a verification found, one row a check; the rows decide whether the file passes.

ok     holds
note   holds no promise: told, and decides nothing
FAIL   a promise that does not hold; one of these, and the file fails
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from gdfq_export.runtime_checks.comparison import PROMISED_LEVEL, LevelResult
from gdfq_export.runtime_checks.proofs import holds

if TYPE_CHECKING:
    from gdfq_export.runtime_checks.verify import VerifyResult

OK, NOTE, FAIL = "ok", "note", "FAIL"
PROOFS = (
    ("saturation_safe", ("saturation",), "no int16 saturation on x86 without VNNI"),
    ("overflow_safe", ("overflow", "bias", "bias_scale"), "no int32 overflow, no bias clipped"),
    ("isa_invariant", ("isa",), "sums and products are the same under FMA, SSE and NEON"),
)
"""Key in the report, the proofs that it stands for, and what they say."""

_MOST_NAMES = 5
_MOST_DETAILS = 10


@dataclass(frozen=True)
class Row:
    """One check: its state, what it found, and where."""

    state: str
    text: str
    details: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """One entry of `rows`."""
        return {"state": self.state, "text": self.text, "details": list(self.details)}


def passes(rows: Iterable[Row]) -> bool:
    """Whether no row fails."""
    return all(row.state != FAIL for row in rows)


def promise(holds: bool, text: str, *, promised: bool = True, details: Sequence[str] = ()) -> Row:
    """A row of something that holds or not, and that fails the file where it was promised and does not."""
    return Row(OK if holds else FAIL if promised else NOTE, text, tuple(details))


def rows_of(result: VerifyResult) -> list[Row]:
    """Every check of `result`, in the order in which they are printed."""
    return [
        *(_level_row(name, level) for name, level in result.levels.items()),
        *_copy_rows(result),
        *_float_rows(result),
        *_proof_rows(result),
        *_stored_rows(result),
        *_missing_rows(result),
        *_overridable_rows(result),
        *_range_rows(result),
        *_simulation_rows(result),
    ]


def listed(names: Sequence[str], most: int = _MOST_NAMES) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _level_row(name: str, level: LevelResult) -> Row:
    total, exact = level.total, [item for item in level.tensors if not item.in_float]
    text = f"level {name}: {total.mismatches} of {total.elements:,} elements differ from the integer reference"
    row = promise(total.mismatches == 0, f"{text} ({len(exact)} tensors)", promised=name == PROMISED_LEVEL)
    return row if exact else Row(NOTE, f"level {name}: nothing to compare, every tensor depends on a float operator")


def _copy_rows(result: VerifyResult) -> list[Row]:
    """What was compared is a copy that shows all its tensors: it has to be what the file itself runs."""
    rows = []
    if not result.same_kernels:
        text = "the copy that shows all tensors runs other kernels than the file: the comparison says little about it"
        rows.append(promise(False, text, promised=result.ours))
    if not result.same_outputs:
        rows.append(Row(FAIL, "the copy that shows all tensors gives other outputs than the file"))
    return rows


def _float_rows(result: VerifyResult) -> list[Row]:
    operators, declared = result.coverage.float_operators, result.float_parts
    names = ": " + listed([result.named(operator.name) for operator in operators]) if operators else ""
    rows = [promise(not operators, f"{len(operators)} operators ran in float{names}", promised=False)]
    if operators and result.ours and not declared:
        rows.append(promise(False, "the file names no float parts, and yet has some", promised=result.strict))
    if declared:
        text = f"left in float by --allow-float, and not the same to the last bit everywhere: {listed(declared)}"
        rows.append(Row(NOTE, text))
    if endings := result.coverage.endings:
        names = listed([f"{operator.op} '{result.named(operator.name)}'" for operator in endings])
        rows.append(Row(NOTE, f"an ending in float, not the same to the last bit everywhere: {names}"))
    return rows


def _proof_rows(result: VerifyResult) -> list[Row]:
    """The proofs are promised of portable files only."""
    rows = []
    for _, properties, text in PROOFS:
        proved = holds(result.proofs, *properties)
        lacking = [row for row in result.proofs if row.property in properties and not row.proved]
        details = [f"{result.named(row.layer)}: {row.property}: {row.detail}" for row in lacking[:_MOST_DETAILS]]
        words = f"{'proved' if proved else 'not proved'}: {text}"
        rows.append(promise(proved, words, promised=result.portable, details=details))
    return rows


def _stored_rows(result: VerifyResult) -> list[Row]:
    rows = []
    if result.golden is not None:
        of = f" (of '{result.named(result.golden_tensor)}', before the ending)" if result.golden_tensor else ""
        text = f"golden vectors{of}: {result.golden.mismatches} of {result.golden.elements:,} outputs differ"
        rows.append(promise(result.golden.mismatches == 0, text))
    elif result.ours and result.float_parts:
        rows.append(Row(NOTE, "golden vectors: none, because of the parts that were left in float"))
    if (changed := result.changed_groups) is not None:
        named = listed([result.named(name) or "the graph" for name in changed], _MOST_DETAILS)
        rows.append(promise(not changed, f"changed: {named}" if changed else "hashes of all layers and facts hold"))
    return rows


def _missing_rows(result: VerifyResult) -> list[Row]:
    text = "says that it was made by this tool and lacks"
    return [promise(False, f"{text} {missing}", promised=result.strict) for missing in result.missing]


def _overridable_rows(result: VerifyResult) -> list[Row]:
    """Weights that are inputs as well hold for a run only until another is passed."""
    if not result.overridable:
        return []
    names = listed([result.named(name) for name in result.overridable])
    text = f"can be overridden at run time, being inputs of the graph as well: {names}"
    return [promise(False, text, promised=result.ours)]


def _range_rows(result: VerifyResult) -> list[Row]:
    """The middle and the worst of what each activation used of its codes."""
    if not result.activations:
        return []
    least = min(result.activations, key=lambda item: item.used)
    middle = median(item.used for item in result.activations)
    text = (
        f"activation ranges: half of the tensors use {100 * middle:.0f} % of their codes or more; least "
        f"{result.named(least.layer)} "
        f"with {100 * least.used:.0f} % ({least.seen.low} to {least.seen.high} of {least.possible.low} to "
        f"{least.possible.high})"
    )
    return [Row(NOTE, text)]


def _simulation_rows(result: VerifyResult) -> list[Row]:
    if (stated := result.simulation) is None:
        return []
    text = (
        f"float simulation of training, when the file was made: {100 * stated['share']:.2f} % of "
        f"{stated['elements']:,} elements differ from the integers, by up to {stated['max_steps']} steps; "
        f"top-1 agreement {stated['top1_agreement']:.1f} % ({stated['images']} images)"
    )
    return [Row(NOTE, text)]
