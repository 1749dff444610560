"""Compiled programs read back: how often things run, what is sent, and along which axes."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from qwen3_jax.sharding import make_mesh
from qwen3_jax.sharding.ahead_of_time.hlo import parse_program, shape_bytes, shape_dims
from qwen3_jax.sharding.ahead_of_time.traffic import axes_of_group, communication, first_group, moved_bytes

ROWS, WIDTH = 64, 256
SPLIT = PartitionSpec(("fsdp", "tensor"))
BYTES = ROWS * WIDTH * 4


def compiled(function, mesh, spec=SPLIT, out=None):
    """The program of a function of local arrays on a [ROWS, WIDTH] float32 array."""
    out = spec if out is None else out
    local = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=out, check_vma=False)
    x = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32, sharding=NamedSharding(mesh, spec))
    return parse_program(jax.jit(local).lower(x).compile().as_text())


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(fsdp=4, tensor=2)


def sent(program, mesh):
    return [(c.kind, c.axes, c.group_size, c.bytes, c.runs) for c in communication(program, mesh)]


def test_an_all_gather_receives_all_but_its_own_part(mesh):
    program = compiled(lambda x: jax.lax.all_gather(x, "fsdp", tiled=True) * 2.0, mesh, out=PartitionSpec("tensor"))
    assert sent(program, mesh) == [("all-gather", ("fsdp",), 4, BYTES // 8 * 3, 1)]


def test_a_reduce_scatter_and_an_all_reduce_of_both_axes(mesh):
    def function(x):
        scattered = jax.lax.psum_scatter(x, "tensor", tiled=True)
        return scattered + jax.lax.psum(jnp.sum(x), ("fsdp", "tensor"))

    program = compiled(function, mesh, PartitionSpec("fsdp"), PartitionSpec(("fsdp", "tensor")))
    found = {kind: rest for kind, *rest in sent(program, mesh)}
    assert found["reduce-scatter"] == [("tensor",), 2, BYTES // 4 // 2, 1]
    assert found["all-reduce"] == [("fsdp", "tensor"), 8, 2 * 4 * 7 // 8, 1]


def test_an_all_to_all_and_a_permutation(mesh):
    def function(x):
        there = jax.lax.all_to_all(x, "fsdp", 0, 0, tiled=True)
        return there + jax.lax.ppermute(x, "tensor", [(0, 1), (1, 0)])

    found = {kind: rest for kind, *rest in sent(compiled(function, mesh), mesh)}
    assert found["all-to-all"] == [("fsdp",), 4, BYTES // 8 * 3 // 4, 1]
    assert found["collective-permute"] == [("tensor",), 2, BYTES // 8, 1]


def test_a_scan_multiplies_and_nested_scans_multiply_again(mesh):
    def function(x):
        def inner(x, _):
            return jnp.tanh(jax.lax.psum(x, "tensor")), None

        def outer(x, _):
            x, _ = jax.lax.scan(inner, x, None, length=5)
            return jnp.sin(jax.lax.psum(x, "fsdp")), None

        return jax.lax.scan(outer, x, None, length=3)[0]

    program = compiled(function, mesh)
    assert sorted((c.axes, c.runs) for c in communication(program, mesh)) == [(("fsdp",), 3), (("tensor",), 15)]
    assert program.unknown_loops == []


def test_a_loop_of_unknown_length_counts_once_and_is_named(mesh):
    def function(x):
        def body(x):
            return jax.lax.psum(x, "fsdp") * 0.5

        return jax.lax.while_loop(lambda x: jnp.sum(x) > 1.0, body, x)

    program = compiled(function, mesh)
    assert [c.runs for c in communication(program, mesh)] == [1]
    assert len(program.unknown_loops) == 1


# ruff: noqa: E501
TPU_TEXT = """HloModule jit_f, num_partitions=8

%body (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %p = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%p), index=1
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %two)
  %start = (bf16[8,128]{1,0}, bf16[16,128]{1,0}) fusion(%x), kind=kCustom, calls=%begin
  %both = bf16[16,128]{1,0} get-tuple-element(%start), index=1
  %done = bf16[16,128]{1,0} fusion(%x, %both), kind=kCustom, calls=%finish
  %kernel = bf16[16,128]{1,0} custom-call(%done), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{}"
}}, metadata={op_name="splash"}
  %half = bf16[8,128]{1,0} slice(%kernel), slice={[0:8], [0:128]}
  ROOT %t = (s32[]{:T(128)}, bf16[8,128]{1,0}) tuple(%next, %half)
}

%begin (a: bf16[8,128]) -> (bf16[8,128], bf16[16,128]) {
  %a = bf16[8,128]{1,0} parameter(0)
  %g.1 = bf16[16,128]{1,0} all-gather(%a), channel_id=7, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, dimensions={0}, frontend_attributes={chain_id="3"}
  ROOT %c = (bf16[8,128]{1,0}, bf16[16,128]{1,0}) custom-call(%a, %g.1), custom_call_target="Start"
}

%finish (a.1: bf16[8,128], b.1: bf16[16,128]) -> bf16[16,128] {
  %a.1 = bf16[8,128]{1,0} parameter(0)
  %b.1 = bf16[16,128]{1,0} parameter(1)
  ROOT %g.2 = bf16[16,128]{1,0} all-gather(%a.1), channel_id=7, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, dimensions={0}, frontend_attributes={chain_id="3"}
}

%condition (p.1: (s32[], bf16[8,128])) -> pred[] {
  %ten = s32[]{:T(128)} constant(10)
  %p.1 = (s32[]{:T(128)}, bf16[8,128]{1,0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %ten), direction=LT
}

ENTRY %main (q: bf16[8,128]) -> bf16[8,128] {
  %q = bf16[8,128]{1,0} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %copied = s32[]{:T(128)} copy(%zero)
  %init = (s32[]{:T(128)}, bf16[8,128]{1,0}) tuple(%copied, %q)
  %loop = (s32[]{:T(128)}, bf16[8,128]{1,0}) while(%init), condition=%condition, body=%body
  ROOT %r = bf16[8,128]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_what_the_tpu_compiler_writes(mesh):
    """No trip count is noted, the loop is unrolled twice (its counter goes by two), and a gather that runs beside other
    work stands in the fusion that starts it and in the one that ends it."""
    program = parse_program(TPU_TEXT)
    assert program.runs == {"main": 1, "body": 5, "begin": 5, "finish": 5}
    assert sent(program, mesh) == [("all-gather", ("tensor",), 2, 8 * 128 * 2, 5)]


GPU_TEXT = """HloModule jit_f, is_scheduled=true, num_partitions=8

FileNames
1 "f.py"

StackFrames
1 {file_location_id=1 parent_frame_id=1}


%add (lhs: f32[], rhs: f32[]) -> f32[] {
  %rhs = f32[] parameter(1)
  %lhs = f32[] parameter(0)
  ROOT %sum = f32[] add(%lhs, %rhs)
}

%next (i.2: s32[]) -> s32[] {
  %i.2 = s32[] parameter(0)
  %one = s32[] constant(1)
  ROOT %plus = s32[] add(%i.2, %one)
}

%body (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %p = (s32[], bf16[8,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = bf16[8,128]{1,0} get-tuple-element(%p), index=1
  %gather-start = (bf16[8,128]{1,0}, bf16[32,128]{1,0}) all-gather-start(%x), channel_id=1, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={0}, use_global_device_ids=true, metadata={op_name="jit(f)/gather" stack_frame_id=5}, backend_config={"operation_queue_id":"0","collective_backend_config":{"is_sync":false,"is_pipelined":false}}
  %work = bf16[8,128]{1,0} fusion(%x), kind=kLoop, calls=%multiply
  %gather-done = bf16[32,128]{1,0} all-gather-done(%gather-start)
  %half = bf16[32,64]{1,0} slice(%gather-done), slice={[0:32], [0:64]}
  %scatter-start = ((bf16[32,128]{1,0}, bf16[32,64]{1,0}), (bf16[8,128]{1,0}, bf16[8,64]{1,0})) reduce-scatter-start(%gather-done, %half), channel_id=2, replica_groups={{0,2,4,6},{1,3,5,7}}, use_global_device_ids=true, dimensions={0}, to_apply=%add
  %scatter-done = (bf16[8,128]{1,0}, bf16[8,64]{1,0}) reduce-scatter-done(%scatter-start)
  %rows = bf16[8,128]{1,0} get-tuple-element(%scatter-done), index=0
  %sizes = s64[2]{0} constant({4, 4})
  %zero = bf16[] constant(0)
  %room = bf16[16,128]{1,0} broadcast(%zero), dimensions={}
  %ragged-start = ((bf16[8,128]{1,0}, bf16[16,128]{1,0}, s64[2]{0}, s64[2]{0}, s64[2]{0}, /*index=5*/s64[2]{0}), bf16[16,128]{1,0}) ragged-all-to-all-start(%rows, %room, %sizes, %sizes, %sizes, /*index=5*/%sizes), channel_id=3, replica_groups={{0,1},{2,3},{4,5},{6,7}}
  %ragged-done = bf16[16,128]{1,0} ragged-all-to-all-done(%ragged-start)
  %i.next = s32[] fusion(%i), kind=kLoop, calls=%next
  ROOT %t = (s32[], bf16[8,128]{1,0}) tuple(%i.next, %rows)
}

%multiply (a: bf16[8,128]) -> bf16[8,128] {
  %a = bf16[8,128]{1,0} parameter(0)
  ROOT %m = bf16[8,128]{1,0} multiply(%a, %a)
}

%condition (p.1: (s32[], bf16[8,128])) -> pred[] {
  %p.1 = (s32[], bf16[8,128]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  ROOT %lt = pred[] fusion(%i.1), kind=kLoop, calls=%compare
}

%compare (i.3: s32[]) -> pred[] {
  %i.3 = s32[] parameter(0)
  %limit = s32[] constant(5)
  ROOT %less = pred[] compare(%i.3, %limit), direction=LT
}

ENTRY %main (q: bf16[8,128]) -> bf16[8,128] {
  %q = bf16[8,128]{1,0} parameter(0)
  %one.1 = s32[] constant(1)
  %init = (s32[], bf16[8,128]{1,0}) tuple(%one.1, %q)
  %loop = (s32[], bf16[8,128]{1,0}) while(%init), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"4"},"known_init_step":{"init":"1","step":"1"},"known_induction_variable":{"tuple_index":"0"}}
  %r = bf16[8,128]{1,0} get-tuple-element(%loop), index=1
  %max-start = bf16[8,128]{1,0} all-reduce-start(%r), channel_id=4, replica_groups=[1,8]<=[8], use_global_device_ids=true, to_apply=%add
  ROOT %max-done = bf16[8,128]{1,0} all-reduce-done(%max-start)
}
"""


def test_what_the_cuda_compiler_writes(mesh):
    """Collectives are pairs of -start and -done, of which the first counts; several arrays may share one; the loop's
    turns are noted (here its first turn was peeled off, so that the counter begins at 1)."""
    program = parse_program(GPU_TEXT)
    assert program.unknown_loops == []
    assert program.runs["body"] == 4
    assert sent(program, mesh) == [
        ("all-reduce", ("fsdp", "tensor"), 8, 2 * 8 * 128 * 2 * 7 // 8, 1),
        ("all-gather", ("fsdp",), 4, 3 * 8 * 128 * 2, 4),
        ("reduce-scatter", ("fsdp",), 4, (32 * 128 + 32 * 64) * 2 * 3 // 4, 4),
        ("ragged-all-to-all", ("tensor",), 2, 8 * 128 * 2 // 2, 4),
    ]


GROUPS = {
    "replica_groups={{0,2},{1,3}}": [0, 2],
    "replica_groups={}": [0, 1, 2, 3, 4, 5, 6, 7],
    "replica_groups=[4,2]<=[8]": [0, 1],
    "replica_groups=[2,4]<=[4,2]T(1,0)": [0, 2, 4, 6],
    "replica_groups=mesh['a'=4,'b'=2] {'a'}": [0, 2, 4, 6],
    "replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}": [0, 1, 4, 5],
    "replica_groups=mesh['a'=8] {'a':(2)2}": [0, 2],
    "source_target_pairs={{0,2},{2,4},{4,6},{6,0},{1,3}}": [0, 2, 4, 6],
}


@pytest.mark.parametrize("text", GROUPS)
def test_every_way_a_group_is_written(text):
    assert sorted(first_group(f"channel_id=1, {text}, dimensions={{0}}", 8)) == GROUPS[text]


def test_axes_of_a_group(mesh):
    assert axes_of_group([0, 2, 4, 6], mesh) == ("fsdp",)
    assert axes_of_group([0, 1], mesh) == ("tensor",)
    assert axes_of_group(range(8), mesh) == ("fsdp", "tensor")


def test_bytes_moved():
    assert moved_bytes("all-gather", 100, 4) == 300
    assert moved_bytes("reduce-scatter", 400, 4) == 300
    assert moved_bytes("all-reduce", 400, 4) == 600
    assert moved_bytes("all-to-all", 400, 4) == 300
    assert moved_bytes("collective-permute", 400, 4) == 400


def test_shapes():
    assert shape_bytes("(bf16[8,128]{1,0:T(8,128)(2,1)}, f32[], /*index=5*/pred[3])") == 8 * 128 * 2 + 4 + 3
    assert shape_dims("(bf16[8,128]{1,0}, u32[])") == [("bf16", (8, 128)), ("u32", ())]


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        parse_program("nothing")
