"""What int8 may cost."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Budget:
    """`max_drop`: points of accuracy, mAP or mean IoU, dB of PSNR, or units of the user's metric that int8 may lose.

    `max_changed`: percent of a classifier's clear labels that int8 may change, if there is no truth. `sqnr_floor_db`: how near int8's outputs
    must stay to fp32's, in dB of signal over error, if neither can tell. `seconds`: time for measuring errors and speed together during the search.
    """

    max_drop: float = 0.5
    max_changed: float = 1.0
    sqnr_floor_db: float = 30.0
    seconds: float = 120.0
