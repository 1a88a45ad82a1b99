"""Collectives of a scheduled program, in XLA's own words (cut from programs for v5e and H200)."""

import re

from cm3jax import hlo

PROGRAM = """HloModule jit_step, is_scheduled=true

%add.1.clone (x.1: f32[], y.1: f32[]) -> f32[] {
  %x.1 = f32[] parameter(0)
  ROOT %add.2 = f32[] add(%x.1, %y.1)
}

%cond (wide.param.1: (bf16[8,8], u32[])) -> pred[] {
  %constant.1 = u32[]{:T(128)} constant(4), metadata={op_name="jit(step)/while"}
  %wide.param.1 = (bf16[8,8]{1,0}, u32[]{:T(128)}) parameter(0)
  %get-tuple-element.1 = u32[]{:T(128)} get-tuple-element(%wide.param.1), index=1
  ROOT %compare.1 = pred[]{:T(512)} compare(%get-tuple-element.1, %constant.1), direction=LT
}

%body (wide.param.2: (bf16[8,8], u32[])) -> (bf16[8,8], u32[]) {
  %wide.param.2 = (bf16[8,8]{1,0}, u32[]{:T(128)}) parameter(0)
  %collective-permute-start.1 = (bf16[8,8]{1,0:T(8,128)S(1)}, bf16[8,8]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%get-tuple-element.3), channel_id=3, source_target_pairs={{0,1},{1,0}}
  %collective-permute-start.2 = (bf16[8,8]{1,0:T(8,128)S(1)}, bf16[8,8]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%get-tuple-element.4), channel_id=4, source_target_pairs={{0,1},{1,0}}
  %collective-permute-done.2 = bf16[8,8]{1,0} collective-permute-done(%collective-permute-start.2)
  %fusion.1 = bf16[8,8]{1,0} fusion(%get-tuple-element.3), kind=kOutput, calls=%fused
  %collective-permute-done.1 = bf16[8,8]{1,0} collective-permute-done(%collective-permute-start.1)
  ROOT %tuple.1 = (bf16[8,8]{1,0}, u32[]{:T(128)}) tuple(%fusion.1, %add.9)
}

%fused (param_0.1: bf16[8,8]) -> bf16[8,8] {
  ROOT %convolution.1 = bf16[8,8]{1,0} convolution(%param_0.1, %param_0.1), dim_labels=bf_io->bf
}

%all-reduce-scatter.1 (input.1: f32[64,64]) -> f32[64,8] {
  %input.1 = f32[64,64]{1,0:T(8,128)} parameter(0)
  %all-reduce.1 = f32[64,64]{1,0:T(8,128)} all-reduce(%input.1), channel_id=146, replica_groups={{0,1}}, to_apply=%add.1.clone
  ROOT %dynamic-slice.1 = f32[64,8]{1,0:T(8,128)} dynamic-slice(%all-reduce.1, %c.1, %c.2)
}

%async_collective_fusion (param_0.2: bf16[8,8]) -> bf16[8,64] {
  %param_0.2 = bf16[8,8]{1,0} parameter(0)
  ROOT %all-gather.9 = bf16[8,64]{1,0} all-gather(%param_0.2), channel_id=9, dimensions={1}
}

%gathered (param_0.4: bf16[8,8]) -> bf16[8,64] {
  %param_0.4 = bf16[8,8]{1,0} parameter(0)
  %all-gather.11 = bf16[8,64]{1,0} all-gather(%param_0.4), channel_id=9, dimensions={1}
  ROOT %custom-call.2 = bf16[8,64]{1,0} custom-call(%param_0.4, %all-gather.11), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main.1_spmd (param.1: bf16[8,8]) -> f32[64,8] {
  %param.1 = bf16[8,8]{1,0} parameter(0)
  %all-gather.1 = bf16[8,64]{1,0} all-gather(%param.1), channel_id=1, dimensions={1}
  %async-collective-start.1 = (bf16[8,8]{1,0}, bf16[8,64]{1,0}) fusion(%param.1), kind=kCustom, calls=%async_collective_fusion
  %custom-call.1 = bf16[8,8]{1,0} custom-call(%param.1), custom_call_target="tpu_custom_call"
  %async-collective-done.1 = bf16[8,64]{1,0} fusion(%async-collective-start.1), kind=kCustom, calls=%gathered
  %while.1 = (bf16[8,8]{1,0}, u32[]{:T(128)}) while(%tuple.711), condition=%cond, body=%body
  %while.2 = (bf16[8,8]{1,0}, u32[]{:T(128)}) while(%tuple.712), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %all-reduce.8 = f32[]{:T(128)} all-reduce(%reduce.1), channel_id=128, to_apply=%add.1.clone
  %all-reduce.9 = f32[64]{0:T(128)} all-reduce(%reduce.2), channel_id=129, to_apply=%add.1.clone
  ROOT %fusion.10 = f32[64,8]{1,0} fusion(%scatter.1), kind=kCustom, calls=%all-reduce-scatter.1
}
"""  # noqa: E501 - XLA's lines


def test_collectives_are_counted_as_often_as_they_run():
    found = hlo.traffic(PROGRAM)
    # In loops of 4 and 3 turns: one permute ends after a product, the other before.
    permute = hlo.Traffic(7, 7, 7 * 128 + 0, 7 * 128)
    assert found["collective-permute"] == permute
    # The plain one is waited for, the one in a fusion of its own runs beside a kernel.
    assert found["all-gather"] == hlo.Traffic(1, 1, 1024, 1024)
    assert found["reduce-scatter"] == hlo.Traffic(0, 1, 0, 64 * 64 * 4)
    assert found["all-reduce"] == hlo.Traffic(0, 1, 0, 2 * 64 * 4)  # the scalar's is left out
    assert hlo.kernels(PROGRAM) == ["tpu_custom_call"]


MERGED = """ENTRY %main.2_spmd (param.1: bf16[8,8]) -> f32[64,8] {
  %reduce-scatter-start.1 = ((bf16[64,8]{1,0:T(8,128)S(1)}, bf16[32,8]{1,0}), (bf16[16,8]{1,0}, bf16[8,8]{1,0})) reduce-scatter-start(%a.1, %a.2), channel_id=1, dimensions={0}
  %fusion.1 = bf16[8,8]{1,0} fusion(%param.1), kind=kOutput, calls=%fused
  %reduce-scatter-done.1 = (bf16[16,8]{1,0}, bf16[8,8]{1,0}) reduce-scatter-done(%reduce-scatter-start.1)
  %all-reduce.1 = (f32[64]{0}, f32[32]{0}) all-reduce(%b.1, %b.2), channel_id=2, to_apply=%add
  %all-gather.1 = f8e4m3fn[64,8]{1,0} all-gather(%c.1), channel_id=3, dimensions={0}
  %all-to-all.1 = pred[64,8]{1,0} all-to-all(%c.2), channel_id=4, dimensions={0}
}
"""  # noqa: E501 - XLA's lines


def test_merged_collectives_send_all_their_arrays():
    found = hlo.traffic(MERGED)
    assert found["reduce-scatter"] == hlo.Traffic(1, 0, (64 + 32) * 8 * 2, 0)
    assert found["all-reduce"] == hlo.Traffic(0, 1, 0, 2 * (64 + 32) * 4)
    assert found["all-gather"] == hlo.Traffic(0, 1, 0, 64 * 8)
    assert found["all-to-all"] == hlo.Traffic(0, 1, 0, 64 * 8)


def two_gathers(between: str) -> str:
    """A program that starts two gathers, and ends the second after this."""
    program = """ENTRY %main.3_spmd (param.1: bf16[8,8]) -> bf16[8,64] {
  %async-collective-start.1 = (bf16[8,8]{1,0}, bf16[8,64]{1,0}) fusion(%param.1), kind=kCustom, calls=%start.9
  %async-collective-start.2 = (bf16[8,8]{1,0}, bf16[8,64]{1,0}) fusion(%param.1), kind=kCustom, calls=%start.12
  %async-collective-done.1 = bf16[8,64]{1,0} fusion(%async-collective-start.1), kind=kCustom, calls=%done.9
  %get-tuple-element.1 = bf16[8,8]{1,0} get-tuple-element(%async-collective-start.2), index=0
  BETWEEN
  %async-collective-done.2 = bf16[8,64]{1,0} fusion(%get-tuple-element.1), kind=kCustom, calls=%done.12
}

""".replace("BETWEEN", between)  # noqa: E501 - XLA's lines
    for name in ("start.9", "done.9", "start.12", "done.12", "async_collective_fusion.12"):
        program += f"""%{name} (param_0.2: bf16[8,8]) -> bf16[8,64] {{
  ROOT %all-gather.{name} = bf16[8,64]{{1,0}} all-gather(%param_0.2), channel_id={name[-2:].strip(".")}, dimensions={{1}}
}}

"""  # noqa: E501
    return program


def test_the_end_of_another_collective_is_no_work():
    found = hlo.traffic(two_gathers(""))
    assert found == {"all-gather": hlo.Traffic(0, 2, 0, 2048)}


def test_a_gather_that_products_do_part_by_part_is_hidden():
    """On v5e with `data` and `fsdp` a product takes what was started, and hands it on."""
    step = (
        "%fusion.3 = (bf16[8,8]{1,0}, bf16[8,8]{1,0}) fusion(%get-tuple-element.1, %param.1), "
        "kind=kCustom, calls=%async_collective_fusion.12"
    )
    found = hlo.traffic(two_gathers(step))
    assert found == {"all-gather": hlo.Traffic(1, 1, 1024, 1024)}


def test_a_gather_that_goes_on_within_products_is_one():
    step = "fusion(%get-tuple-element.3), kind=kCustom, calls=%async_collective_fusion.2"
    body = PROGRAM.replace("fusion(%get-tuple-element.3), kind=kOutput, calls=%fused", step)
    assert body != PROGRAM
    for channel, more in {9: 0, 10: 7}.items():  # the second was started by nobody
        program = f"""{body}
%async_collective_fusion.2 (param_0.3: bf16[8,8]) -> bf16[8,8] {{
  %all-gather.10 = bf16[8,64]{{1,0}} all-gather(%param_0.3), channel_id={channel}, dimensions={{1}}
  ROOT %convolution.2 = bf16[8,8]{{1,0}} convolution(%param_0.3, %param_0.3), dim_labels=bf_io->bf
}}
"""
        found = hlo.traffic(program)["all-gather"]
        assert found == hlo.Traffic(1, 1 + more, 1024, 1024 * (1 + more))


def test_moves_between_memories_are_no_copies():
    moved, copied = "bf16[1024,1024]{1,0:T(8,128)(2,1)S(1)}", "bf16[1024,1024]{0,1:T(8,128)(2,1)}"
    lying = "bf16[1024,1024]{1,0:T(8,128)(2,1)}"
    lines = [
        "ENTRY %main.1 (x.1: bf16[1024,1024]) -> bf16[1024,1024] {",
        f"  %x.1 = {lying} parameter(0)",
        f"  %copy-start.1 = ({moved}, {lying}, u32[]{{:S(2)}}) copy-start(%x.1)",
        f"  %copy-start.2 = ({copied}, {lying}, u32[]{{:S(2)}}) copy-start(%x.1)",
        f"  ROOT %copy.1 = {copied} copy(%x.1)",
        "}",
    ]
    assert hlo.copies("\n".join(lines), large=2**20) == 2
    assert hlo.copies("\n".join(lines), large=2**22) == 0


def test_a_turn_of_a_loop_reads_what_is_in_memory():
    program = """%body (param.1: (bf16[64,64], bf16[8,64,64], bf16[64,64])) -> bf16[64,64] {
  %weights = bf16[64,64]{1,0:T(8,128)} get-tuple-element(%param.1), index=0
  %cache = bf16[8,64,64]{2,1,0:T(8,128)} get-tuple-element(%param.1), index=1
  %kept = bf16[64,64]{1,0:T(8,128)S(1)} get-tuple-element(%param.1), index=2
  %slice-start.1 = ((bf16[8,64,64]{2,1,0:T(8,128)}), bf16[2,64,64]{2,1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%cache), slice={[0:2]}
  %slice-done.1 = bf16[2,64,64]{2,1,0:T(8,128)S(1)} slice-done(%slice-start.1)
  %fusion.1 = bf16[8,64,64]{2,1,0:T(8,128)} fusion(%cache, %kept), kind=kLoop, calls=%written
  ROOT %fusion.2 = bf16[64,64]{1,0:T(8,128)S(1)} fusion(%kept, %weights), kind=kOutput, calls=%product
}

%written (param_0.1: bf16[8,64,64], param_1.1: bf16[64,64]) -> bf16[8,64,64] {
  %param_0.1 = bf16[8,64,64]{2,1,0:T(8,128)} parameter(0)
  %param_1.1 = bf16[64,64]{1,0:T(8,128)S(1)} parameter(1)
  ROOT %dynamic-update-slice.1 = bf16[8,64,64]{2,1,0:T(8,128)} dynamic-update-slice(%param_0.1, %param_1.1, %c.1)
}

%product (param_0.2: bf16[64,64], param_1.2: bf16[64,64]) -> bf16[64,64] {
  %param_0.2 = bf16[64,64]{1,0:T(8,128)S(1)} parameter(0)
  %param_1.2 = bf16[64,64]{1,0:T(8,128)} parameter(1)
  %bitcast.1 = bf16[64,64]{1,0:T(8,128)} bitcast(%param_1.2)
  ROOT %convolution.1 = bf16[64,64]{1,0:T(8,128)S(1)} convolution(%param_0.2, %bitcast.1), dim_labels=bf_io->bf
}

ENTRY %main.1 (x.1: bf16[64,64]) -> bf16[64,64] {
  %while.1 = (bf16[64,64]{1,0}, bf16[8,64,64]{2,1,0}, bf16[64,64]{1,0}) while(%tuple.1), condition=%cond, body=%body
}
"""  # noqa: E501 - XLA's lines
    # The product's weights and two of eight pages of the cache; nothing of the page written.
    assert hlo.read_per_turn(program) == (1 + 2) * 64 * 64 * 2
    # Some versions of XLA write the arguments' types, too.
    typed = re.sub(r"\((%kept|%cache)", r"(bf16[8,64]{1,0:T(8,128)S(1)} \1", program)
    assert typed != program
    assert hlo.read_per_turn(typed) == hlo.read_per_turn(program)
    assert hlo.read_per_turn("ENTRY %main.1 (x.1: f32[]) -> f32[] {\n}\n") == 0
