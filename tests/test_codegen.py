"""The instrument that reads compiled code: on text whose counts are known, and on the package in other processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from bench.codegen.assembly import parse_gcn, parse_sass
from bench.codegen.cases import checked
from bench.codegen.check import worse
from bench.codegen.count import GCN, SASS, Share, Work, paths
from bench.codegen.flow import control_flow

ROOT = Path(__file__).resolve().parent.parent

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
        /*00f0*/               @P5 BRA 0x00c0 ;
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


def test_what_got_worse_is_named():
    before = {"registers": 32, "loads": {"128": 4}, "paths": {"masked": {"pixel": 62.0}}}
    assert list(worse(before, before)) == []
    assert list(worse({**before, "registers": 30}, before)) == []
    after = {"registers": 40, "loads": {"32": 16}, "paths": {"masked": {"pixel": 62.5}}}
    assert list(worse({**before, "paths": {}}, before)) == ["paths masked is lost"]
    assert list(worse(after, before)) == ["registers 32 -> 40", "loads 32 0 -> 16", "paths masked pixel 62 -> 62.5"]


def test_no_more_is_compiled_than_a_test_run_can_afford():
    assert len(checked()) <= 120  # and tests/compiled.py some 40 more


@pytest.mark.parametrize("module", ["bench.codegen --check", "tests.compiled"])
def test_compiled_code(module):
    """Without the interpreter, which this process may have on."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    result = subprocess.run(
        [sys.executable, "-m", *module.split()], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
