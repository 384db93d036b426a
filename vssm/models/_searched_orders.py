"""The directions that LocalMamba's search found, four for each block, under their official names.

h: rows; v: columns; w2 and w7: windows of 2 x 2 and 7 x 7 tokens; each also backwards (flip).
"""

from vssm.scan import backwards, columns, local, raster, resolve_order

H, V, W2, W7 = raster, columns, local(2), local(7)
H_FLIP, V_FLIP, W2_FLIP, W7_FLIP = (backwards(order) for order in (H, V, W2, W7))

_LOCAL_VIM = (
    (H, V_FLIP, W7, W7_FLIP),
    (H_FLIP, W2_FLIP, W7, W7_FLIP),
    (H, H_FLIP, V, W7),
    (H, H_FLIP, V, V_FLIP),
    (H, H_FLIP, V, V_FLIP),
    (H, H_FLIP, V, V_FLIP),
    (H_FLIP, V, V_FLIP, W7),
    (H_FLIP, V, V_FLIP, W2_FLIP),
    (H, H_FLIP, V, V_FLIP),
    (H, H_FLIP, V, V_FLIP),
    (H, V, V_FLIP, W2),
    (H, V, V_FLIP, W2_FLIP),
    (H, H_FLIP, V_FLIP, W7),
    (H_FLIP, V, V_FLIP, W2),
    (H, H_FLIP, V, V_FLIP),
    (H, V, W2, W2_FLIP),
    (V, V_FLIP, W2, W7),
    (H, H_FLIP, V, W2),
    (H, H_FLIP, W2_FLIP, W7),
    (V, V_FLIP, W2, W2_FLIP),
)
_LOCAL_VMAMBA_TINY = (
    (H, H_FLIP, W7, W7_FLIP),
    (H_FLIP, V_FLIP, W2, W2_FLIP),
    (H_FLIP, V_FLIP, W2_FLIP, W7),
    (H_FLIP, V, V_FLIP, W2),
    (H, H_FLIP, V_FLIP, W2_FLIP),
    (H_FLIP, V_FLIP, W2, W2_FLIP),
    (H, W2_FLIP, W7, W7_FLIP),
    (H, H_FLIP, V, V_FLIP),
    (H, V_FLIP, W7, W7_FLIP),
    (H_FLIP, V, W2, W7_FLIP),
    (V, V_FLIP, W2, W7_FLIP),
    (H, H_FLIP, V_FLIP, W2_FLIP),
    (V_FLIP, W2_FLIP, W7, W7_FLIP),
    (H_FLIP, V_FLIP, W2_FLIP, W7_FLIP),
    (H_FLIP, V, W7, W7_FLIP),
)
_LOCAL_VMAMBA_SMALL = (
    (H, V, V_FLIP, W7_FLIP),
    (H, H_FLIP, V, W7),
    (H_FLIP, V, V_FLIP, W7),
    (H_FLIP, V, W2_FLIP, W7),
    (H_FLIP, V, W2_FLIP, W7),
    (H_FLIP, V_FLIP, W2, W7_FLIP),
    (H_FLIP, V, V_FLIP, W7),
    (H, V, V_FLIP, W7),
    (H, V, V_FLIP, W7),
    (H, V, V_FLIP, W7_FLIP),
    (H, H_FLIP, V, V_FLIP),
    (H, V, V_FLIP, W2),
    (V, V_FLIP, W2_FLIP, W7),
    (H, H_FLIP, V, W2),
    (H_FLIP, V, V_FLIP, W7_FLIP),
    (H, H_FLIP, V, V_FLIP),
    (H, V, V_FLIP, W7_FLIP),
    (H, V, V_FLIP, W7_FLIP),
    (H, H_FLIP, V_FLIP, W7),
    (H_FLIP, V_FLIP, W2_FLIP, W7),
    (H_FLIP, V, V_FLIP, W7_FLIP),
    (V, V_FLIP, W7, W7_FLIP),
    (H, V, V_FLIP, W7_FLIP),
    (H_FLIP, V, V_FLIP, W2),
    (H, V, V_FLIP, W2_FLIP),
    (H, H_FLIP, V, W7),
    (H, H_FLIP, W7, W7_FLIP),
    (H, V_FLIP, W2, W2_FLIP),
    (H, V_FLIP, W2, W7),
    (H, V, V_FLIP, W7_FLIP),
    (H_FLIP, V, W2_FLIP, W7),
    (H_FLIP, V_FLIP, W7, W7_FLIP),
    (H, V, W7, W7_FLIP),
)

LOCAL_VIM, LOCAL_VMAMBA_TINY, LOCAL_VMAMBA_SMALL = (
    tuple(resolve_order(directions) for directions in searched)
    for searched in (_LOCAL_VIM, _LOCAL_VMAMBA_TINY, _LOCAL_VMAMBA_SMALL)
)
# Not searched: the same in every block of LocalVim-S, as the official code defines it last.
ROWS_AND_WINDOWS = resolve_order((H, H_FLIP, W2, W2_FLIP))
