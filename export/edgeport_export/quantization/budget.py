"""What int8 may cost."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Budget:
    """`max_drop`: points of accuracy or mean IoU, dB of PSNR, or units of the user's metric that int8 may lose.

    `sqnr_floor_db`: how near int8's outputs must stay to fp32's, in dB of signal over error, if no metric can tell.
    `seconds`: time for measuring errors and speed together during the search.
    """

    max_drop: float = 0.5
    sqnr_floor_db: float = 30.0
    seconds: float = 120.0
