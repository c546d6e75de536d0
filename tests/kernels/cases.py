"""Layouts of KV that every copier of kernels/ is tried on."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.kernels.bodies import Case


def kv(name: str, order: str, run: int, tokens: int, heads: int = 2, planes: int = 2, **more: int):
    return Case(2, planes, 7, heads, tokens, run, order, 3, **more, name=name)


# `run` is what lies together of one token's head in one plane: head size times element size.
CASES = [
    # vLLM 0.32's orders of [L, B, H, N, C] where C is K then V of a token ("t" before "p") ...
    *(kv(order, order, 256, 16) for order in ("lbhtp", "lbthp", "blhtp", "blthp", "hlbtp")),
    # ... or K and V apart: FlashInfer's and Triton's HND and NHD, whole planes first or by block.
    *(
        kv(order, order, 256, 16)
        for order in ("lpbht", "lpbth", "lbpht", "lbpth", "blpht", "blpth")
    ),
    # Head sizes and types: fp8 and bf16 of 64 to 256, odd ones in pieces of 8 and of 4 bytes.
    *(kv(f"run-{run}", "lbthp", run, 16) for run in (64, 128, 160, 192, 224, 512)),
    *(kv(f"run-{run}", "lbthp", run, 16) for run in (72, 88, 120, 36, 60, 132, 4)),
    *(kv(f"block-{tokens}", "lbthp", 128, tokens) for tokens in (16, 32, 64, 128)),
    # MLA: one head and plane, 512 + 64 values of bf16, or DeepSeek's 656 bytes with fp8.
    kv("mla", "lbhtp", 1152, 16, heads=1, planes=1),
    kv("mla-fp8", "lbhtp", 656, 64, heads=1, planes=1),
    # A block's page with gaps that are nobody's; and opaque pages.
    kv("gap", "lbthp", 144, 8, gap=48, offset=16),
    kv("opaque", "lpbht", 4224, 1, planes=1, gap=64),
    Case(1, 2, 300, 1, 3, 4, "lpbth", 299, offset=4, name="more-pages-than-fit"),
    Case(3, 1, 2, 3, 5, 20, "lpbth", 1, offset=4, name="padding-44"),
]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Room for two chunks at least."""
    per_chunk = draw(st.integers(1, 4))
    piece = draw(st.sampled_from([4, 8, 16]))
    return Case(
        layers=draw(st.integers(1, 3)),
        planes=draw(st.integers(1, 2)),
        blocks=2 * per_chunk + draw(st.integers(0, 2)),
        heads=draw(st.integers(1, 3)),
        tokens=draw(st.integers(1, 19)),
        run=piece * draw(st.integers(1, 40)),
        order="".join(draw(st.permutations("lpbht"))),
        per_chunk=per_chunk,
        gap=piece * draw(st.integers(0, 3)),
        offset=piece * draw(st.integers(0, 5)),
    )
