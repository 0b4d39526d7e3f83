"""The instrument that reads compiled code: on text whose counts are known, and on the package in other processes."""

import os
import pathlib
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from bench.codegen.assembly import parse_gcn, parse_sass
from bench.codegen.budget import over_budget
from bench.codegen.cases import Case, checked, measured
from bench.codegen.check import faults, lost, worse
from bench.codegen.count import GCN, SASS, Count, Gather, Path, Share, Work, gather_path, paths
from bench.codegen.flow import control_flow
from bench.workloads import WORKLOADS

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Two loops over tiles; the second has a loop over channels and its remainder, a branch, and an exit within.
SASS_TEXT = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/               @P0 BRA 0x0070 ;
        /*0020*/                   FADD R0, R0, 1 ;
        /*0030*/                   LDG.E R2, desc[UR4][R2.64] ;
        /*0040*/                   STG.E desc[UR4][R2.64], R2 ;
        /*0050*/               @P1 BRA 0x0020 ;
        /*0060*/                   EXIT ;
        /*0070*/                   FADD R0, R0, 1 ;
        /*0080*/               @P2 BRA 0x00a0 ;
        /*0090*/                   FADD R0, R0, 1 ;
        /*00a0*/                   FADD R0, R0, 1 ;
        /*00b0*/               @P3 BRA 0x0110 ;
        /*00c0*/               @P4 LDG.E.128 R4, desc[UR4][R2.64] ;
        /*00d0*/                   FFMA R4, R4, R4, RZ ;
        /*00e0*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*00f0*/               @P5 BRA 0x00c0      &req={1}            ?trans6;
        /*0100*/                   BRA 0x0130 ;
        /*0110*/                   LDG.E R4, desc[UR4][R2.64] ;
        /*0120*/                   STG.E desc[UR4][R2.64], R4 ;
        /*0130*/              @!P6 CALL.REL.NOINC 0x0150 ;
        /*0140*/                   BRA 0x0070 ;
        /*0150*/                   EXIT ;
        /*0160*/                   BRA 0x0160 ;
        /*0170*/                   NOP ;
"""

GCN_TEXT = """
kernel:
; %bb.0:
	s_load_dwordx2 s[0:1], s[4:5], 0x0
.LBB0_1:
	v_add_f32_e32 v0, 1.0, v0
	s_and_saveexec_b64 s[2:3], vcc
	s_cbranch_execz .LBB0_3
; %bb.2:
	global_load_dword v1, v[2:3], off
.LBB0_3:
	s_or_b64 exec, exec, s[2:3]
	global_store_dword v[2:3], v1, off
	s_cbranch_scc1 .LBB0_1
; %bb.4:
	s_endpgm
	.section .rodata
	v_never 0
"""


def test_sass_paths():
    code = parse_sass(SASS_TEXT)
    assert len(code) == 22  # without the padding
    found = paths(control_flow(code), SASS, Work())
    short, long = found["unmasked"], found["masked"]
    assert (short.pixel, short.channel, short.prologue) == (4, 0, 3)  # MOV, BRA, ..., EXIT
    # FADD, BRA, FADD (the longer way), FADD, BRA, then the loop, BRA, CALL, BRA: not the remainder's two.
    assert (long.pixel, long.channel) == (8, 1)  # four instructions for four elements
    share = Share(channels=16, channel_blocks=3, lanes=2, tiles=4)
    assert long.per_pixel(share, with_prologue=False) == 8 * 2 * 3 + 16
    assert long.per_pixel(share, with_prologue=True) == (8 + long.prologue / 4) * 2 * 3 + 16


def test_gcn_paths():
    found = paths(control_flow(parse_gcn(GCN_TEXT)), GCN, Work())
    assert (found["masked"].pixel, found["masked"].prologue) == (7, 2)


def test_the_unmasked_loop_has_the_loads_that_nothing_guards():
    """However long it is."""
    found = paths(control_flow(parse_sass(SASS_TEXT.replace("       LDG.E R2,", "   @P0 LDG.E R2,"))), SASS, Work())
    assert [path.pixel for path in found.values()] == [4, 8]  # the other one's are guarded, or in a branch
    unguarded = SASS_TEXT.replace("@P4 LDG", "LDG").replace("       LDG.E R2,", "   @P0 LDG.E R2,")
    found = paths(control_flow(parse_sass(unguarded)), SASS, Work())
    assert found["masked"].pixel == 4
    assert found["unmasked"].pixel == 8


def test_three_loops_over_tiles_are_all_reported():
    third = """
        /*0160*/                   LDG.E R4, desc[UR4][R2.64] ;
        /*0170*/               @P0 BRA 0x0160 ;
        /*0180*/                   EXIT ;
"""
    text = SASS_TEXT.replace("/*0150*/                   EXIT", "/*0150*/               @P0 EXIT")
    text = text[: text.index("        /*0160*/")] + third
    assert list(paths(control_flow(parse_sass(text)), SASS, Work(loads=1))) == ["loop 0", "loop 1", "loop 2"]


GATHER_TEXT = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/               @P0 BRA 0x00e0 ;
        /*0020*/                   FADD R0, R0, 1 ;
        /*0030*/                   FADD R0, R0, 1 ;
        /*0040*/               @P1 LDG.E R2, desc[UR4][R2.64] ;
        /*0050*/               @P2 LDG.E R3, desc[UR4][R2.64] ;
        /*0060*/                   FFMA R4, R2, R3, R4 ;
        /*0070*/               @P3 BRA 0x0040 ;
        /*0080*/               @P1 LDG.E R2, desc[UR4][R2.64] ;
        /*0090*/                   FFMA R4, R2, R3, R4 ;
        /*00a0*/               @P3 BRA 0x0080 ;
        /*00b0*/                   STG.E desc[UR4][R2.64], R4 ;
        /*00c0*/               @P4 BRA 0x0020 ;
        /*00d0*/                   EXIT ;
        /*00e0*/                   STG.E desc[UR4][R2.64], RZ ;
        /*00f0*/               @P5 BRA 0x00e0 ;
        /*0100*/                   EXIT ;
"""


def test_a_gathers_loops():
    """Two target pixels a trip, or one, within a loop over tiles; the other loop clears."""
    loops = control_flow(parse_sass(GATHER_TEXT))
    path = gather_path(loops, SASS, Gather(rows=1, box=6, channels=1, bits=32))
    assert (path.prologue, path.pixel, path.candidate) == (3, 4, 2)  # one at a time is dearer, 3
    assert path.per_pixel(Share(channels=1, tiles=3), with_prologue=True) == 4 + 6 * 2 + 1
    assert gather_path(loops, SASS, Gather(rows=1, box=6, channels=2, bits=32)).candidate == 4  # one of two channels
    both = gather_path(loops, SASS, Gather(rows=2, box=8, channels=1, bits=32))
    assert both.per_pixel(Share(channels=1), with_prologue=False) == (4 + 8 * 2) / 2  # two pixels ask at once


def test_faults_of_a_gather():
    arguments = {"d_out": torch.empty(0), "VECTOR": 1, "EXACT": True}
    launch = SimpleNamespace(name="warp_gather", arguments=arguments, kernel=compiled_without_fusion())
    assert list(faults(launch, SOUND)) == []
    assert list(faults(launch, replace(SOUND, barriers=1))) == ["has a barrier in a gather"]
    assert list(faults(launch, replace(SOUND, atomics={"REDG.ADD.F32": 1}))) == ["has atomics in a gather"]


def test_a_loop_with_two_entries_is_refused():
    """Its trips are not counted as straight code."""
    text = """
        /*0000*/               @P0 BRA 0x0020 ;
        /*0010*/                   FADD R0, R0, 1 ;
        /*0020*/                   FADD R0, R0, 1 ;
        /*0030*/               @P1 BRA 0x0010 ;
        /*0040*/                   EXIT ;
"""
    with pytest.raises(ValueError, match="one entry"):
        control_flow(parse_sass(text)).path()


LOOP = Path(prologue=200, pixel=44, channel=0, barriers=0, shared=0)
SOUND = Count(registers=32, spilled=0, shared=0, barriers=0, instructions=400, loads={"32": 8}, paths={"masked": LOOP})
FAULTY = {
    "spills 8 bytes": {"spilled": 8},
    "fences memory": {"fences": 1},
    "compares and swaps": {"atomics": {"ATOMG.CAS": 1}},
    "has a barrier in a forward kernel": {"barriers": 1},
    "has a barrier in the masked loop": {"paths": {"masked": replace(LOOP, barriers=1)}},
    "goes through shared memory in the masked loop over channels": {"paths": {"masked": replace(LOOP, shared=2)}},
    "has 0 loops over tiles: none": {"paths": {}},
    "has 2 loops over tiles: unmasked, masked": {"paths": {"unmasked": LOOP, "masked": LOOP}},
    "reads no 128 bits at once": {"loads": {"32": 8, "64": 4}},
}


def compiled_without_fusion():
    return SimpleNamespace(asm={"ttir": ""}, metadata=SimpleNamespace(enable_fp_fusion=False))


@pytest.mark.parametrize("fault", FAULTY)
def test_faults_are_named(fault):
    vector = 4 if "128" in fault else 1
    arguments = {"out": None, "image": torch.empty(0), "MONOTONE": False, "VECTOR": vector, "UNROLL": 1, "SOURCE": None}
    launch = SimpleNamespace(name="warp_forward", arguments=arguments, kernel=compiled_without_fusion())
    wide = replace(SOUND, loads={"128": 1})
    assert list(faults(launch, wide)) == []
    assert list(faults(launch, replace(wide, **FAULTY[fault]))) == [fault]


def test_budget():
    """Per pixel, and for all channels; not where it is known to be out of reach."""
    path, share = replace(LOOP, pixel=62), Share(channels=1)
    assert list(over_budget(Case(shape=(8, 1, 256, 256)), {"masked": path}, share)) == []
    dearer = {"unmasked": replace(path, pixel=45), "masked": replace(path, pixel=62.5)}
    expected = ["costs 62.5 instructions a pixel on the masked path, over its budget of 62"]
    assert list(over_budget(Case(shape=(8, 1, 256, 256)), dearer, share)) == expected
    assert list(over_budget(Case(shape=(8, 1, 256, 256), work="d_theta"), dearer, share)) == []
    assert list(over_budget(Case(shape=(8, 1, 256, 256), target="sm_80"), dearer, share)) == []
    both = Case(shape=(8, 2, 256, 256), work="both", dtype="bfloat16")  # 22 bytes an element
    limit = 7.8 * 22 * 2
    for cost, complaints in ((limit - 1, 0), (limit + 1, 1)):
        found = list(over_budget(both, {"masked": replace(path, pixel=cost)}, Share(channels=2)))
        assert len(found) == complaints


def test_what_got_worse_is_named():
    before = {"registers": 32, "loads": {"128": 4}, "paths": {"masked": {"pixel": 62.0}}}
    assert list(worse(before, before)) == []
    assert list(worse({**before, "registers": 30}, before)) == []
    after = {"registers": 40, "loads": {"32": 16}, "paths": {"masked": {"pixel": 62.5}}}
    assert list(worse({**before, "paths": {}}, before)) == ["paths masked is lost"]
    assert list(worse(after, before)) == ["registers 32 -> 40", "loads 32 0 -> 16", "paths masked pixel 62 -> 62.5"]


def test_a_pinned_case_that_is_lost_is_named():
    known = SimpleNamespace(label="a case")
    assert lost([known], {"a case": {}, "another": {}}) == ["another: is pinned and no longer checked"]


def test_no_more_is_compiled_than_a_test_run_can_afford():
    assert len(checked()) <= 165  # of one to three kernels, and tests/compiled.py some 40 more


@pytest.mark.parametrize("module", ["bench.codegen --check", "tests.compiled"])
def test_compiled_code(module):
    """Without the interpreter, which this process may have on."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    result = subprocess.run(
        [sys.executable, "-m", *module.split()], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]


def test_every_workload_is_a_case_of_the_report():
    cases = list(measured())
    labels = [case.label for case in cases]
    assert len(set(labels)) == len(labels)
    backward = {"none": set(), "image": {"d_image"}, "theta": {"d_theta"}, "both": {"both"}}
    for workload in WORKLOADS:
        of_workload = {case.work for case in cases if case.workload is workload}
        assert of_workload == {"forward"} | backward[workload.needs]
