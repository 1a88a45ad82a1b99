"""What a compiled program says of itself: its collectives, and which of them wait for nobody.

Read from XLA's text of the scheduled program, as its compilers for TPUs and GPUs write it.
"""

import dataclasses
import math
import re
from collections import defaultdict
from typing import Any

import jax

from cm3jax.errors import UserError

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
"""Collectives, as XLA names them."""

_SCALARS = 64
"""Bytes up to which an array is of figures, no data."""
_BITS = re.compile(r"[a-z]+(\d+)")
_WORK = re.compile(r"\b(fusion|convolution|dot|custom-call|while)\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")


@dataclasses.dataclass
class Traffic:
    """The collectives of one kind in a step, loops being run out."""

    hidden: int = 0
    """Collectives that run at the same time as arithmetic."""
    waiting: int = 0
    """Collectives that arithmetic waits for."""
    hidden_bytes: int = 0
    """What one device sends by the first."""
    waiting_bytes: int = 0
    """What one device sends by the others."""

    def add(self, times: int, sent: int, hidden: bool) -> None:
        """Count a collective that runs `times` times and sends `sent` bytes each time."""
        if hidden:
            self.hidden += times
            self.hidden_bytes += times * sent
        else:
            self.waiting += times
            self.waiting_bytes += times * sent


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    opcode: str
    result: str
    """Its type."""
    text: str

    @property
    def called(self) -> list[str]:
        return _CALLED.findall(self.text)

    @property
    def operands(self) -> list[str]:
        """Names of its arguments, whose types, if they are written too, hold brackets."""
        arguments = self.text.removeprefix(self.result).partition("(")[2].partition("), ")[0]
        return re.findall(r"%([\w.\-]+)", arguments)


def analysed(made: jax.stages.Compiled) -> tuple[Any, str]:
    """XLA's account of a program's memory, and its text; `UserError` where its compiler keeps them
    to itself."""
    memory, text = made.memory_analysis(), made.as_text()
    if memory is None or text is None:
        raise UserError("the compiler says nothing of its programs; plan for another target.")
    return memory, text


def traffic(text: str) -> dict[str, Traffic]:
    """Collectives by kind.

    `text` is `jax.stages.Compiled.as_text()`. Scalars' are left out: they carry no data.
    """
    programs, entry = _computations(text)
    started = _started(programs)
    found: dict[str, Traffic] = defaultdict(Traffic)

    def visit(name: str, times: int) -> None:
        program = programs.get(name, [])
        for place, one in enumerate(program):
            collective = _collective(one, programs)
            if collective is not None:
                kind, sent = collective
                # TPUs sum and scatter in a fusion of that name.
                if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                    kind, sent = "reduce-scatter", sent // 2
                # A gather that TPUs start may go on within many a product, in loops too.
                goes_on = name.startswith("async_collective_fusion") and _channel(one) in started
                if sent and not goes_on:
                    hidden = _runs_beside(one, program[place + 1 :], programs)
                    found[kind].add(times, sent, hidden)
            elif not (one.opcode.endswith("-done") or "-done" in one.name):
                turns = _turns(one, programs) if one.opcode == "while" else 1
                for called in one.called:
                    visit(called, times * turns)

    visit(entry, 1)
    return dict(found)


def kernels(text: str) -> list[str]:
    """The kernels of other makers than XLA in the program, by their targets, sorted."""
    targets = re.findall(r'custom_call_target="([^"]+)"', text)
    return sorted(
        {each for each in targets if re.search("tpu_custom_call|cudnn|triton|mosaic", each)}
    )


def copies(text: str, large: int) -> int:
    """How often arrays of `large` bytes or more are copied, loops being run out.

    An array that is only moved to a TPU's fast memory or back, in its layout, is no copy.
    """
    programs, entry = _computations(text)

    def count(name: str) -> int:
        found = 0
        for one in programs.get(name, []):
            if one.opcode in ("copy", "copy-start"):
                found += _sent(one) >= large and not _moved(one)
            elif one.opcode == "while":
                found += _turns(one, programs) * sum(map(count, one.called))
            elif one.opcode in ("call", "conditional"):
                found += sum(map(count, one.called))
        return found

    return count(entry)


_ALIASES = ("bitcast", "get-tuple-element", "tuple", "while", "parameter", "constant")
_SLICES = ("dynamic-slice", "slice", "gather")


def read_per_turn(text: str) -> int:
    """Bytes that one turn of the program's main loop, which reads most, reads from the device's
    memory; 0 without a loop.

    Arrays in a TPU's fast memory were read when they were moved there. Of an array that is sliced
    only the slice is read, and nothing of one that is written in place.
    """
    programs, entry = _computations(text)
    loops = [one.called for one in programs[entry] if one.opcode == "while"]
    return max((sum(_read_by(each, programs) for each in loop) for loop in loops), default=0)


def _read_by(name: str, programs: dict[str, list[_Instruction]]) -> int:
    """Bytes that a computation reads from memory, loops in it being run out."""
    program = programs.get(name, [])
    types = {one.name: one.result for one in program}
    found = 0
    for one in program:
        if one.opcode == "while":
            found += _turns(one, programs) * sum(_read_by(each, programs) for each in one.called)
        elif one.opcode not in _ALIASES and not one.opcode.endswith("-done"):
            for place, operand in enumerate(one.operands):
                array = types.get(operand, "(")
                if not array.startswith("(") and not re.search(r"S\(\d+\)", array):
                    found += _read_of(one, place, _bytes(array), programs)
    return found


def _read_of(one: _Instruction, place: int, size: int, programs: dict) -> int:
    """Bytes that an instruction reads of its operand at this place, which has `size`."""
    if one.opcode == "slice-start":
        return _bytes(_parts(one.result)[1])
    if one.opcode in _SLICES:
        return min(size, _bytes(one.result)) if place == 0 else size
    if one.opcode in ("dynamic-update-slice", "scatter") and place == 0:
        return 0
    if one.opcode != "fusion":
        return size
    program = [each for called in one.called for each in programs.get(called, [])]
    mine = [each.name for each in program if f" parameter({place})" in f" {each.text}"]
    return min(size, sum(_read_within(name, size, program, programs) for name in mine))


def _read_within(mine: str, size: int, program: list[_Instruction], programs: dict) -> int:
    """Bytes that a fusion reads of one of its arrays."""
    found = 0
    for one in program:
        places = [place for place, operand in enumerate(one.operands) if operand == mine]
        for place in places:
            read = 0 if one.opcode == "bitcast" else _read_of(one, place, size, programs)
            if not read and _bytes(one.result) == size:  # it only goes by another name from here
                read = _read_within(one.name, size, program, programs)
            found += read
    return found


def _moved(one: _Instruction) -> bool:
    """Whether a copy changes the memory that an array is in, and not its layout."""
    if one.opcode != "copy-start":
        return False
    to, source = (re.sub(r"S\(\d+\)", "", part).strip() for part in _parts(one.result)[:2])
    return to == source


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """The instructions of each computation, and the name of the first that runs."""
    programs: dict[str, list[_Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*->.*\{$", line)
        if head:
            current = programs.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
            continue
        one = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)$", line)
        if one and current is not None:
            opcode = re.search(r"(?:^|[\])}] )([a-z][\w\-]*)\(", one[2])
            kind, end = (opcode[1], opcode.start(1)) if opcode else ("", 0)
            current.append(_Instruction(one[1], kind, one[2][:end], one[2]))
    return programs, entry


def _started(programs: dict[str, list[_Instruction]]) -> set[str]:
    """Channels of the collectives that TPUs start by a fusion of that name."""
    starts = [o for ones in programs.values() for o in ones if "async-collective-start" in o.name]
    return {channel for one in starts for channel in _channels(one, programs)}


def _channels(one: _Instruction, programs: dict[str, list[_Instruction]]) -> set[str]:
    """Channels of the collectives in the programs that an instruction calls."""
    inner = [each for called in one.called for each in programs.get(called, [])]
    return {_channel(each) for each in inner if each.opcode in KINDS}


def _channel(one: _Instruction) -> str:
    found = re.search(r"channel_id=(\d+)", one.text)
    return found[1] if found else ""


def _collective(one: _Instruction, programs: dict) -> tuple[str, int] | None:
    """Kind and bytes sent of a collective, also of one that is wrapped to be asynchronous."""
    plain = one.opcode.removesuffix("-start")
    if plain in KINDS:
        return plain, 2 * _sent(one) if plain == "all-reduce" else _sent(one)
    if one.opcode == "async-start" or "async-collective-start" in one.name:
        for called in one.called:
            for inner in programs.get(called, []):
                found = _collective(inner, programs)
                if found is not None:
                    return found
    return None


def _sent(one: _Instruction) -> int:
    """Bytes that a device sends, at most: all of the longer side except its own part.

    XLA merges collectives, whose arrays then count together. The start of a collective has
    arguments, result and more as its parts; the start of a sum has only its result.
    """
    if one.opcode.endswith("-start") and one.opcode != "all-reduce-start":
        return max(map(_bytes, _parts(one.result)))
    # Some versions of XLA write the arguments' types, too.
    arguments = one.text.removeprefix(one.result).split(", channel_id", 1)[0]
    return max(_bytes(one.result), _bytes(arguments))


def _bytes(types: str) -> int:
    """Bytes of all arrays in a type but those of figures."""
    sizes = (
        math.prod(int(n) for n in shape.split(",") if n) * _bits(kind) // 8
        for kind, shape in _ARRAY.findall(types)
    )
    return sum(size for size in sizes if size > _SCALARS)


def _bits(kind: str) -> int:
    """The bits of one element; a truth value takes a byte."""
    found = _BITS.match(kind)
    return int(found[1]) if found else 8


def _parts(types: str) -> list[str]:
    """The types of which a tuple's is made."""
    parts, depth = [""], 0
    for letter in types.strip().removeprefix("(").removesuffix(")"):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _runs_beside(
    one: _Instruction, later: list[_Instruction], programs: dict[str, list[_Instruction]]
) -> bool:
    """Whether it ends only after other work."""
    if "-start" not in one.opcode and "-start" not in one.name:
        return False
    work = False
    for other in later:
        if _ends(one, other, programs):
            return work
        # TPUs start and end collectives by fusions.
        waits = "-start" in other.name or "-done" in other.name
        work = work or (bool(_WORK.search(other.text)) and not waits)
    return work


def _ends(one: _Instruction, other: _Instruction, programs: dict) -> bool:
    """Whether a collective that was started has to be there for this instruction."""
    if "async-collective-start" in one.name:
        # What a fusion starts goes from product to product, each of which does a part of it.
        return "-done" in other.name and bool(_channels(one, programs) & _channels(other, programs))
    return bool(re.search(rf"%?{re.escape(one.name)}\b(?![.\-])", other.text))


def _turns(loop: _Instruction, programs: dict[str, list[_Instruction]]) -> int:
    """How often a loop runs: as it says, or else what its condition compares with."""
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.text)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.text)
    bounds = [
        int(number)
        for one in programs.get(condition[1] if condition else "", [])
        for number in re.findall(r"^[su]32\[\]\S* constant\((\d+)\)", one.text)
    ]
    return max(bounds, default=1)
