"""What a function does with each parameter, and what multiplies it there, measured batch by batch."""

from jaxprune._calibration._calibrate import calibrate as calibrate
from jaxprune._calibration._layout import Layout as Layout
from jaxprune._calibration._layout import layout as layout
