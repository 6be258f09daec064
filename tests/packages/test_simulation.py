"""Models of fields: PDEquinox, in Equinox."""

import pytest
from zoo.case import floats

from packages import build
from packages.case import INPUT, MARKS, ONE, OUTPUT, TAPS, Model, check

pytestmark = MARKS


def _built(name: str, **options):
    import pdequinox

    make = getattr(pdequinox.arch, name)
    return build.equinox(
        lambda key: make(1, 2, 1, hidden_channels=8, num_blocks=1, key=key, **options), floats(2, 2, 16)
    )


_AXES = {
    r"(conv_\d|bypass_conv|by_pass_conv|lifting|blocks/\d|projection)/(weight|bias)\[[12]\]": f"{TAPS}|{INPUT}|{ONE}",
    r"projection/(weight|bias)\[0\]": f"{OUTPUT}|{ONE}",
}

MODELS = {
    "unet": Model(
        "UNet",
        "pdequinox",
        lambda: _built("ModernUNet", num_levels=1),
        0.6,
        {**_AXES, r"lifting/(bypass_)?norm(_1)?/": INPUT},
        {r"weight": 1},
        (r"bias$",),
    ),
    "fourier": Model(
        "Fourier neural operator",
        "pdequinox",
        lambda: _built("ClassicFNO", num_modes=4),
        0.6,
        {**_AXES, r"spectral_conv/weights_\w+\[[03]\]": f"{ONE}|'fft' makes it"},
        {r"spectral_conv": 2, r"(lifting|by_pass_conv|projection)/weight": 1},
        (r"bias$",),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_model(name, record_property):
    check(MODELS[name], record_property)
